"""What the checks of `sttm doctor` recognise."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec

import pytest

from sttm import doctor
from tests.helpers import ROOT


def test_a_torchvision_of_another_torch_is_recognised(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(doctor, "_model", lambda: "fine")
    (finding,) = [finding for finding in doctor.examine() if finding.name == "torchvision"]
    assert finding.status == "broken" and "another torch" in finding.detail
    assert finding.fix.startswith("pip uninstall torchvision")


def test_what_is_absent_says_what_it_gives_and_how_to_install_it(monkeypatch):
    monkeypatch.setattr(doctor, "_model", lambda: "fine")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = {finding.name: finding for finding in doctor.examine()}
    assert {name for name, finding in found.items() if finding.status == "absent"} == {"torchvision", *doctor.OPTIONAL}
    assert found["accelerate"].detail == "not installed; sttm train needs it"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, (extra, gives) in doctor.OPTIONAL.items():
        assert found[name].fix == f"pip install 'sttm[{extra}]'" and gives in found[name].detail
        assert any(re.match(rf"{name}\b", line) for line in project["optional-dependencies"][extra])


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_it_reports_to_nobody() -> None:
    code = "import sys; from sttm import doctor; print(*(f.status for f in doctor.examine() if f.name == 'openvino'))"
    code += "; print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["ok", "[]"]


def test_what_is_broken_is_installed_again_alone_in_a_version_that_fits(monkeypatch):
    monkeypatch.setattr(doctor, "_model", lambda: "fine")
    monkeypatch.setitem(sys.modules, "transformers", None)
    (finding,) = [finding for finding in doctor.examine() if finding.name == "transformers"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = [line for line in project["dependencies"] if line.startswith("transformers")]
    assert finding.status == "broken" and finding.fix.startswith(
        "pip install --force-reinstall --no-deps 'transformers"
    )
    said = finding.fix.partition("'transformers")[2].rstrip("'").split(",")
    assert set(said) == set(wanted.removeprefix("transformers").split(","))

"""What the checks of `sttm doctor` recognise."""

import os

from sttm import doctor


def test_a_torchvision_of_another_torch_is_recognised(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    finding = doctor._try("torchvision", doctor._torchvision, needed=False, fix="uninstall it")
    assert finding.status == "broken" and "another torch" in finding.detail and finding.fix == "uninstall it"

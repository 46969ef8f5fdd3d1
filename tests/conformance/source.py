"""transformers' own tests: where they come from, and how they are imported under a name that is not ours."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers

from sttm.errors import SttmError
from tests.helpers import ROOT

#: Never part of the repository: git ignores it.
CACHE = ROOT / ".cache" / "conformance"
PACKAGE = "transformers_tests"
#: What the mixins import and the sdist leaves out; a full checkout has it.
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def find(checkout: str | None) -> Path:
    """Return the folder of the tests: of a checkout, or of the sdist of the installed version, fetched when missing.

    Raises:
        SttmError: if there is no such folder, or no package index that has the sdist.
    """
    if checkout:
        tests = Path(checkout) / "tests"
        if not (tests / "test_modeling_common.py").is_file():
            raise SttmError(f"{checkout} is no checkout of transformers: it has no tests/test_modeling_common.py")
        return tests
    name = f"transformers-{transformers.__version__}"
    if not (CACHE / name / "tests").is_dir():
        sdist = CACHE / f"{name}.tar.gz"
        if not sdist.is_file():
            _pip("download", "--no-binary", "transformers", "-d", str(CACHE), name.replace("-", "=="))
        with tarfile.open(sdist) as archive:
            wanted = [member for member in archive if member.name.startswith(f"{name}/tests/")]
            archive.extractall(CACHE, wanted, filter="data")
    return CACHE / name / "tests"


def mixin(tests: Path) -> Any:
    """Return `ModelTesterMixin`, imported from the folder of the tests."""
    try:
        importlib.import_module("parameterized")  # which the tests need and nothing else here
    except ImportError:
        packages = CACHE / "packages"
        if not packages.is_dir():
            _pip("install", "--target", str(packages), "parameterized==0.9.0")
        sys.path.append(str(packages))
    package = ModuleType(PACKAGE)
    package.__path__ = [str(tests)]
    sys.modules[PACKAGE] = package
    for name, left_out in LEFT_OUT.items():
        if not (tests / f"{name.replace('.', '/')}.py").is_file():
            module = ModuleType(f"{PACKAGE}.{name}")
            setattr(module, left_out, type(left_out, (), {}))
            sys.modules[module.__name__] = module
            folder = ModuleType(module.__name__.rpartition(".")[0])
            folder.__path__ = []
            sys.modules[folder.__name__] = folder
    common: Any = importlib.import_module(f"{PACKAGE}.test_modeling_common")
    # It sets the epsilon of all norms to 1, which no config of a folder that sttm reads may say.
    common.set_config_for_less_flaky_test = lambda config: None
    return common.ModelTesterMixin


def _pip(*arguments: str) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--quiet", arguments[0], "--no-deps", *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SttmError(
            f"the tests of transformers cannot be had ({' '.join(command[2:])} failed); "
            "run this where a package index is reached, or give a checkout with TRANSFORMERS=/path"
        )

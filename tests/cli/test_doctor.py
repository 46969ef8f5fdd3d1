"""`sttm doctor`."""

import json

from sttm import doctor


def test_doctor_finds_this_environment_healthy(sttm):
    outcome = sttm("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(outcome.out)}
    assert outcome.code == 0, outcome.out
    assert all(findings[name]["status"] == "ok" for name in ("python", "torch", "transformers", "video", "model"))


def test_doctor_is_not_stopped_by_what_is_broken(sttm, monkeypatch):
    def broken() -> str:
        raise ImportError("libtorch.so: cannot open\nsecond line")

    monkeypatch.setattr(doctor, "_torch", broken)
    monkeypatch.setattr(doctor, "_model", lambda: "fine")
    outcome = sttm("doctor", "--json")
    assert outcome.code == 1
    torch_finding = next(finding for finding in json.loads(outcome.out) if finding["name"] == "torch")
    assert torch_finding["detail"] == "libtorch.so: cannot open" and "pip install" in torch_finding["fix"]

"""The notebook runs from its first cell to its last, without the network, and is kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import ROOT

BOOK = ROOT / "docs/first_steps.ipynb"
#: In the kernel's folder, which is on its path: Python runs it before the kernel, which itself needs 127.0.0.1.
OFFLINE = """
import socket

connect, resolve = socket.socket.connect, socket.getaddrinfo


def check(host):
    if host not in (None, "localhost", "127.0.0.1"):
        raise AssertionError(f"the notebook asks the network for {host}")


def only_here(self, address):
    if isinstance(address, tuple):
        check(address[0])
    return connect(self, address)


def resolve_here(host, *rest, **options):
    check(host)
    return resolve(host, *rest, **options)


socket.socket.connect, socket.getaddrinfo = only_here, resolve_here
"""
#: Runs last: shows that the above was in force.
PROBE = """
import socket

try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except AssertionError as refusal:
    print(refusal)
"""


def test_it_is_kept_without_outputs() -> None:
    code = [cell for cell in nbformat.read(BOOK, as_version=4).cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.extended
def test_it_runs_as_a_whole_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(OFFLINE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / 'src'}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(BOOK, as_version=4)
    probe = nbformat.v4.new_code_cell(PROBE)
    book.cells.append(probe)
    NotebookClient(book, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.id: cell.outputs for cell in book.cells if cell.cell_type == "code"}
    text = {
        name: "".join(part.text for part in parts if part.get("name") == "stdout") for name, parts in outputs.items()
    }
    assert text[probe.id] == "the notebook asks the network for 192.0.2.1\n"
    rows = text["predict"].splitlines()[1:]
    assert len(rows) == 6 and all(row.count("%") == 2 for row in rows)
    assert [row.split(".mp4")[0] for row in rows if row.split()[0] == f"{row.split()[3]}.mp4"], "no word is right"
    assert "62%" in text["apply"].splitlines()[-2]
    assert any("image/png" in part.get("data", {}) for part in outputs["show"])
    assert text["time"].count("not a benchmark") == 2

"""Every video gets one row, however a run over a corpus is ended and goes on."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sttm
from sttm.corpus.manifest import FILE, LINES, PARTS, Store
from tests.helpers import holding

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def source(motion_list: Path, tmp_path: Path) -> Path:
    """Return a list of 11 videos, the second one absent, the fourth no video."""
    paths = sorted(str(path) for path in (motion_list.parent / "videos").glob("*.mp4"))[:9]
    paths[1:1] = [str(tmp_path / "absent.mp4")]
    paths[3:3] = [str(motion_list.parent / "broken.mp4")]
    (tmp_path / "list.txt").write_text("\n".join(paths) + "\n")
    return tmp_path / "list.txt"


def rows(output: Path) -> list[dict[str, Any]]:
    """Return the rows of all parts in the order of the files, without the time that they took."""
    tables = [parquet.read_table(path) for path in sorted((output / PARTS).glob("*"))]
    return [row | {"seconds": None} for table in tables for row in table.to_pylist()]


def manifest(output: Path) -> dict[str, Any]:
    return json.loads((output / FILE).read_text())


def test_rows_are_the_records_of_predict(in_process, source: Path, tmp_path: Path, motion_model: Path) -> None:
    outcome = in_process(source, tmp_path / "out", model=str(motion_model), compute=0.7)
    found = rows(tmp_path / "out")
    assert [row["number"] for row in found] == list(range(11)) and outcome.errors == 2
    paths = source.read_text().split()
    records = list(sttm.predict(paths, str(motion_model), 0.7, batch_size=2))
    for row, record in zip(found, records, strict=True):
        assert row["path"] == record["path"] and row["error"] == record.get("error")
        for rank, best in enumerate(record.get("predictions", []), start=1):
            assert (row[f"prediction_{rank}"], row["compute"]) == (best["label"], record["compute"])
            assert row[f"score_{rank}"] == pytest.approx(best["score"], abs=1e-6)
    facts = manifest(tmp_path / "out")
    assert (facts["rows"], facts["errors"], facts["finished"], len(facts["parts"])) == (11, 2, True, 3)
    assert facts["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("group", [2, 5])
def test_a_run_that_was_stopped_ends_in_the_same_rows(
    group: int, in_process, source: Path, tmp_path: Path, motion_model: Path
) -> None:
    def stop(now: int) -> None:
        if now == group:
            raise KeyboardInterrupt

    options = {"model": str(motion_model), "features": "pooled"}
    in_process(source, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        in_process(source, tmp_path / "out", until=stop, **options)
    half = manifest(tmp_path / "out")
    assert not half["finished"] and len(half["parts"]) == group // 2
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / PARTS).iterdir()}
    outcome = in_process(source, tmp_path / "out", order=-1, **options)
    assert rows(tmp_path / "out") == rows(tmp_path / "whole") and outcome.videos == 11 - 4 * (group // 2)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert len(manifest(tmp_path / "out")["sessions"]) == 2
    again = in_process(source, tmp_path / "out", until=lambda group: pytest.fail("it is finished"), **options)
    assert again.videos == 0 and again.errors == 2


def test_lines_and_files_of_a_killed_run_count_only_together(
    in_process, source: Path, tmp_path: Path, motion_model: Path
) -> None:
    in_process(source, tmp_path / "out", model=str(motion_model))
    lines = (tmp_path / "out" / LINES).read_text().splitlines(keepends=True)
    (tmp_path / "out" / LINES).write_text(lines[0] + lines[1] + lines[2][:40])  # killed while it wrote a line
    (tmp_path / "out" / PARTS / "part-000001.parquet").write_bytes(b"PAR1")  # cut off by a disk
    (tmp_path / "out" / PARTS / ".part-000002.parquet.77").write_bytes(b"PAR1")
    outcome = in_process(source, tmp_path / "out", model=str(motion_model))
    assert outcome.videos == 7 and [row["number"] for row in rows(tmp_path / "out")] == list(range(11))
    assert len((tmp_path / "out" / LINES).read_text().splitlines()) == 3


def test_a_changed_setting_is_refused_with_what_differs(in_process, source: Path, tmp_path: Path, motion_model: Path):
    options = {"model": str(motion_model)}
    in_process(source, tmp_path / "out", **options)
    before = rows(tmp_path / "out")
    for changed, said in (
        ({"compute": 0.5}, "--compute was None and is 0.5"),
        ({"top_k": 2, "views": "2x1"}, "--views was '1x1' and is '2x1'; --top-k was 5 and is 2"),
        ({"features": "pooled"}, "--features was 'none' and is 'pooled'"),
        ({"model": "sttm-motion-plain"}, "--model was .*; the files of the model have changed"),
    ):
        with pytest.raises(sttm.SttmError, match=f"begun otherwise: {said}.*another OUTPUT"):
            in_process(source, tmp_path / "out", **options | changed)
    source.write_text("\n".join(source.read_text().splitlines()[:-1]))
    with pytest.raises(sttm.SttmError, match="INPUT has 10 videos that are not the 11 of then"):
        in_process(source, tmp_path / "out", **options)
    assert rows(tmp_path / "out") == before


def test_two_runs_and_other_files(in_process, source: Path, tmp_path: Path, motion_model: Path) -> None:
    with holding(tmp_path / "out"), pytest.raises(sttm.SttmError, match=r"is writing to .*/out; stop it, or choose"):
        in_process(source, tmp_path / "out", model=str(motion_model))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(sttm.SttmError, match=r"holds other files, such as thesis.tex; give OUTPUT a new folder"):
        in_process(source, tmp_path / "mine", model=str(motion_model))
    with pytest.raises(sttm.SttmError, match="--part 5 is not a multiple of the 2 videos of one batch; give, say, 4"):
        in_process(source, tmp_path / "odd", part=5)
    assert not (tmp_path / "odd").exists()


def test_a_full_disk_leaves_whole_parts(in_process, source: Path, tmp_path: Path, motion_model: Path, monkeypatch):
    write = parquet.write_table

    def full(table: Any, where: Any, **options: Any) -> None:
        if "part-000001" in str(where):
            Path(where).write_bytes(b"PAR1")
            raise OSError(errno.ENOSPC, "No space left on device", str(where))
        write(table, where, **options)

    with monkeypatch.context() as patch, pytest.raises(sttm.SttmError, match=r"No space left .* make room"):
        patch.setattr(parquet, "write_table", full)
        in_process(source, tmp_path / "out", model=str(motion_model))
    assert [path.name for path in (tmp_path / "out" / PARTS).iterdir()] == ["part-000000.parquet"]
    in_process(source, tmp_path / "out", model=str(motion_model))
    assert [row["number"] for row in rows(tmp_path / "out")] == list(range(11))


@pytest.mark.parametrize("compute", [None, 0.6])
def test_slots_and_their_paths(compute: float | None, in_process, source: Path, tmp_path: Path, motion_model: Path):
    in_process(source, tmp_path / "out", model=str(motion_model), compute=compute, features="slots")
    found = rows(tmp_path / "out")
    assert found[1]["slots"] is found[1]["slot_paths"] is None
    for row in (row for row in found if row["error"] is None):
        slots, sizes = np.array(row["slots"], np.float32), np.array(row["slot_sizes"])
        paths = np.array(row["slot_paths"], np.float32).reshape(len(sizes), -1, 3)
        assert slots.shape == (len(sizes), 32) and paths.shape[1] == 2 and np.isfinite(slots).all()
        assert (len(sizes) == 32) == (compute is None) and sizes.sum() == pytest.approx(32)
        assert np.allclose(paths[..., 2].sum(1), sizes, atol=1e-2) and abs(paths[..., :2]).max() <= 1


def test_pooled_features_are_what_the_classifier_reads(in_process, source: Path, tmp_path: Path, motion_model: Path):
    in_process(source, tmp_path / "out", model=str(motion_model), features="pooled", views="2x1", batch_size=4)
    model = sttm.load(motion_model)
    (row, *_) = rows(tmp_path / "out")
    with torch.no_grad():  # the mean of the logits over views is the head of the mean of the features
        scores = model.classifier(torch.tensor(row["pooled"])).softmax(-1)
    assert model.config.id2label[int(scores.argmax())] == row["prediction_1"]


def test_slots_need_one_view(in_process, source: Path, tmp_path: Path, motion_model: Path) -> None:
    with pytest.raises(sttm.SttmError, match="slots are those of one view"):
        in_process(source, tmp_path / "out", model=str(motion_model), features="slots", views="2x1")


def test_a_damaged_manifest_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(sttm.SttmError, match=r"manifest\.json is not valid JSON"):
        Store(tmp_path).read()

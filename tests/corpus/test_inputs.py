"""The videos of a corpus: from whatever names them, numbered, written and read again."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

import sttm
from sttm.corpus import inputs
from sttm.data.video.video import Video

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def corpus(tmp_path: Path, clips: Path) -> Path:
    """Return a folder with clips/, and lists of them in every kind."""
    shutil.copytree(clips, tmp_path / "clips")
    (tmp_path / "paths.txt").write_text("clips/a.mp4\nclips/absent.mp4\n")
    (tmp_path / "column.csv").write_text("path\nclips/a.mp4\nclips/absent.mp4\n")
    (tmp_path / "labels.csv").write_text("path,label\nclips/a.mp4,x\nclips/absent.mp4,y\n")
    pq.write_table(pa.table({"path": ["clips/a.mp4", "clips/absent.mp4"], "n": [1, 2]}), tmp_path / "list.parquet")
    with tarfile.open(tmp_path / "s-000.tar", "w") as tar:
        tar.add(clips / "a.mp4", "one.mp4")
    return tmp_path


@pytest.mark.parametrize("name", ["paths.txt", "column.csv", "labels.csv", "list.parquet"])
def test_every_kind_of_list_names_all(name: str, corpus: Path) -> None:
    there, absent = inputs.find(corpus / name)
    assert there.path == str(corpus / "clips/a.mp4") and there.probe().width == 64
    with pytest.raises(sttm.SttmError, match=r"absent\.mp4 does not exist"):
        absent.probe()


def test_folder_and_shards(corpus: Path) -> None:
    found = inputs.find(corpus / "clips")
    assert [Path(video.path).name for video in found] == ["a.mp4", "b.mp4", "c.mkv"]
    for source in (corpus / "s-000.tar", corpus / "s-{000..000}.tar"):
        (video,) = inputs.find(source)
        assert video.path == f"{corpus}/s-000.tar/one" and video.probe().width == 64


@pytest.mark.parametrize("name", ["paths.txt", "labels.csv", "list.parquet"])
def test_no_path_leaves_the_root(name: str, corpus: Path) -> None:
    root = corpus / "inner"
    root.mkdir()
    (root / "link.mp4").symlink_to(corpus / "clips" / "a.mp4")
    (root / "own.mp4").touch()
    paths = ["own.mp4", "../inner/own.mp4", str(corpus / "clips" / "a.mp4"), "../clips/a.mp4", "link.mp4"]
    if name == "list.parquet":
        pq.write_table(pa.table({"path": paths}), corpus / name)
    else:
        lines = ["path,label", *(f"{path},x" for path in paths)] if name == "labels.csv" else paths
        (corpus / name).write_text("\n".join(lines))
    inside, also, *outside = inputs.find(corpus / name, root=root)
    assert inside.error is None is also.error
    assert all(video.error and f"is outside of --root={root}" in video.error for video in outside)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    odd = os.fsdecode(b"a\xff\nb%s.mp4")
    videos = [Video(odd), Video("f", frames=(0, None)), Video("g", frames=(3, 9)), Video("", error=f"no {odd}")]
    videos += [Video(f"{number}.mp4") for number in range(9)]
    digest = inputs.write(videos, tmp_path, part=4)
    read = inputs.Inputs(tmp_path, part=4)
    assert [read.read(first, first + 2) for first in (0, 2, 4, 12)] == [
        list(enumerate(videos[first : first + 2], start=first)) for first in (0, 2, 4, 12)
    ]
    assert digest == inputs.digest(videos) != inputs.digest(videos[:-1]) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        ({"a": ["x"], "b": ["y"]}, {}, "has no column of paths that sttm knows but a, b; name the column"),
        ({"path": ["x"]}, {"column": "pth"}, "has no column 'pth' but path"),
        ({"path": [1, 2]}, {}, "holds 1; give paths"),
        ({"path": ["x", None]}, {}, "holds None; give paths"),
        ({"path": pa.array([], pa.string())}, {}, "holds nothing; give paths"),
    ],
)
def test_a_parquet_without_paths(table: dict, options: dict, said: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    with pytest.raises(sttm.SttmError, match=said):
        inputs.find(tmp_path / "x.parquet", **options)


def test_what_is_no_corpus(corpus: Path) -> None:
    (corpus / "none").mkdir()
    (corpus / "bad.parquet").write_text("PAR1")
    pq.write_table(pa.table({"path": ["word"]}), corpus / "text.parquet", compression="none", use_dictionary=False)
    (corpus / "text.parquet").write_bytes((corpus / "text.parquet").read_bytes().replace(b"word", b"\xfford"))
    for source, said in (
        (corpus / "none", "holds no video file"),
        (corpus / "bad.parquet", "is no readable parquet file"),
        (corpus / "text.parquet", "is no readable parquet file"),
        (corpus / "no.parquet", "does not exist"),
        (corpus / "clips" / "a.mp4", "is one video; give a folder"),
        (corpus / "no.csv", "does not exist"),
    ):
        with pytest.raises(sttm.SttmError, match=said):
            inputs.find(source)
    with pytest.raises(sttm.SttmError, match="--column names a column of a parquet"):
        inputs.find(corpus / "paths.txt", column="x")

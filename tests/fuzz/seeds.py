"""What the cases are made of: whole clips, lists, configs, models, checkpoints and shards, made once."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np

from sttm.config import dump, load
from sttm.config.reading import recipes
from tests.conftest import save_small_model

#: Codec and pixel format of the clips, by suffix.
CLIPS = {
    "mp4": ("libx264", "yuv420p"),
    "mkv": ("libx264", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "webm": ("libvpx", "yuv420p"),
    "gif": ("gif", "rgb8"),
    "ts": ("mpeg2video", "yuv420p"),
    "mov": ("mjpeg", "yuvj420p"),
    "flv": ("flv", "yuv420p"),
}
LISTS = {
    "kinetics.csv": "label,youtube_id,time_start,time_end,split\na,abcdefghijk,1,11,test\nb,lmnopqrstuv,0,10,test\n",
    "table.csv": "path,label,split\na.mp4,x,test\nb.mp4,y,test\nc.mp4,x,test\n",
    "ssv2.json": '[{"id":"1","label":"a b","template":"A [something]","placeholders":["b"]},{"id":"2","template":"B"}]',
    "diving.json": '[{"vid_name":"a","label":0,"start_frame":0,"end_frame":9},{"vid_name":"b","label":1}]',
    "jester.csv": "34870;Drumming Fingers\n56557;Sliding Two Fingers Left\n",
    "trainlist01.txt": "Archery/v_Archery_g08_c01.avi 3\nBowling/v_Bowling_g08_c01.avi 4\n",
    "list.txt": "a.mp4 0\nb/c.mp4 1\nd.mp4 1\n",
    "frames.txt": "a 300 0\nb 250 1\n",
    "paths.txt": "a.mp4\nb.mkv\n",
    "wave_test_split1.txt": "a.avi 1\nb.avi 2\n",
}


def make(folder: Path) -> Path:
    """Make all of them in a folder, and return it."""
    for suffix, (codec, pixel_format) in CLIPS.items():
        _write_clip(folder / "clips" / f"seed.{suffix}", codec, pixel_format)
    (folder / "lists").mkdir()
    for name, text in LISTS.items():
        (folder / "lists" / name).write_text(text)
    (folder / "configs").mkdir()
    for name, path in list(recipes().items())[::6]:
        (folder / "configs" / f"{name.replace('/', '-')}.yaml").write_text(dump(load(path)))
    save_small_model(folder / "plain", ["ant", "bee", "cat"], num_frames=8)
    _merged_model(folder)
    _checkpoint(folder)
    with tarfile.open(folder / "shard.tar", "w") as tar:
        (folder / "label.cls").write_text("1")
        for number, suffix in enumerate(("mp4", "gif")):
            tar.add(folder / "clips" / f"seed.{suffix}", f"{number}.{suffix}")
            tar.add(folder / "label.cls", f"{number}.cls")
    return folder


def _write_clip(path: Path, codec: str, pixel_format: str) -> None:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (10, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for image in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image).reformat(format=pixel_format)))
        container.mux(stream.encode())


def _merged_model(folder: Path) -> None:
    import sttm

    model = sttm.load(folder / "plain")
    sttm.apply(model, 0.7, learned=True)
    sttm.save(model, folder / "merged")
    shutil.copy(folder / "plain" / "preprocessor_config.json", folder / "merged")


def _checkpoint(folder: Path) -> None:
    """Make what `sttm.training.checkpoints` takes for a whole checkpoint: files, and their hashes."""
    from sttm.training import checkpoints

    step = folder / "run" / "checkpoints" / "step-00000004"
    shutil.copytree(folder / "plain", step)
    (step / checkpoints.STATE).write_bytes((folder / "plain" / "model.safetensors").read_bytes())
    (step / checkpoints.PROGRESS).write_text(json.dumps({"step": 4}))
    hashes = {path.name: checkpoints._hash(path) for path in sorted(step.iterdir())}
    (step / checkpoints.HASHES).write_text(json.dumps(hashes))


def whole(seeds: Path) -> list[tuple[str, Path]]:
    """Return everything that was made, with the kind that it is judged as: all of it has to be answered."""
    found = [("clip", path) for path in (seeds / "clips").iterdir()]
    found += [("list", path) for path in (seeds / "lists").iterdir()]
    found += [("config", path) for path in (seeds / "configs").iterdir()]
    found += [("model", seeds / "plain"), ("merged", seeds / "merged"), ("checkpoint", seeds / "run" / "checkpoints")]
    return [*found, ("shard", seeds / "shard.tar")]

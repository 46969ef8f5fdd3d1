"""Make folders of labelled synthetic videos: *motion*, whose classes need time, and *scene*, which any frame tells.

A clip depends on its kind, seed and index alone: not on the number of cores, nor on the number of clips.

Legend: T frames, H x W a picture, 3 colours.
"""

import csv
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from sttm.errors import SttmError, unknown
from sttm.synth.clips import CLASSES, SCENE_CLASSES, VERSION, SyntheticClip, design, render
from sttm.synth.motions import MOTION_CLASSES

FPS = 8


@dataclass(frozen=True)
class SynthSettings:
    """Which videos to make; the same settings always make the same clips."""

    kind: str = "motion"
    """`motion` or `scene`."""
    clips: int = 1000
    seed: int = 0
    frames: int = 16
    """Frames of a clip, 8 a second; even, at least 8."""
    size: int = 112
    """Height and width in pixels; even, at least 32."""
    train: float = 0.8
    validation: float = 0.1
    test: float = 0.1
    """The share of each split; together 1."""

    def __post_init__(self) -> None:
        """Check every field; raise SttmError for the first impossible field."""
        if self.kind not in CLASSES:
            raise unknown("kind", self.kind, CLASSES)
        least_clips = len(CLASSES[self.kind])
        limits = (("clips", least_clips, 10**7), ("seed", 0, 2**63), ("frames", 8, 1024), ("size", 32, 2048))
        for name, least, most in limits:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                reason = f" (one for each of the {least} classes)" if name == "clips" else ""
                raise SttmError(f"{name} is {value!r}; give a whole number from {least}{reason} to {most}")
        for name in ("frames", "size"):
            if getattr(self, name) % 2:
                raise SttmError(f"{name} is {getattr(self, name)}, but must be even; add or subtract one")
        shares = (self.train, self.validation, self.test)
        if not (min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6):
            raise SttmError(f"train, validation and test are {shares}, but must be 0 or more and add up to 1; fix them")

    def split(self, index: int) -> str:
        """Return the split of clip `index`: the first clips are of train, the next of validation, the last of test."""
        if index < round(self.clips * self.train):
            return "train"
        return "validation" if index < round(self.clips * (self.train + self.validation)) else "test"


def video_path(settings: SynthSettings, index: int) -> Path:
    """Return the path of clip `index` in its folder: `videos/<id>.mp4`, or as Kinetics names its files."""
    if settings.kind == "motion":
        return Path("videos", f"{index}.mp4")
    label = SCENE_CLASSES[index % len(SCENE_CLASSES)]
    return Path("videos", label, f"{_youtube_id(index)}_{0:06d}_{_seconds(settings):06d}.mp4")


def _youtube_id(index: int) -> str:
    return f"made{index:07d}"  # eleven characters, like theirs


def _seconds(settings: SynthSettings) -> int:
    return -(-settings.frames // FPS)


def encode(pictures_THW3: NDArray[np.uint8], path: Path) -> None:
    """Write pictures as an h264 mp4 at 8 frames a second; the file appears only when it is complete."""
    part = path.with_suffix(".part")
    try:
        with av.open(str(part), "w", format="mp4") as container:
            # One thread, or the bytes depend on the machine. Key frames only, or the first frame would differ from the
            # others in quality, and shuffled frames would tell where the video began.
            options = {"preset": "veryfast", "crf": "20", "threads": "1", "g": "1"}
            stream = container.add_stream("libx264", rate=FPS, options=options)
            stream.height, stream.width = pictures_THW3.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for picture in pictures_THW3:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(folder: Path, settings: SynthSettings, index: int) -> None:
    pictures, _, _ = render(settings.kind, index, settings.seed, frames=settings.frames, size=settings.size)
    encode(pictures, folder / video_path(settings, index))


def make(
    folder: str | Path,
    settings: SynthSettings,
    *,
    workers: int | None = None,
    advance: Callable[[int, int], None] = lambda videos, total: None,
) -> Path:
    """Make a folder of annotated clips, or go on where an earlier run of the same settings stopped.

    *motion* has the format of Something-Something v2 (train.json, validation.json, test.json, test-answers.csv,
    labels.json; videos are .mp4 where the official ones are .webm), *scene* that of Kinetics (kinetics_train.csv,
    kinetics_val.csv, kinetics_test.csv). `synth.json` holds the settings, `tracks.jsonl` the tracks.

    Args:
        workers: processes; None is one for each core. The clips do not depend on it.
        advance: called after each video with 1 and the number of videos that were missing.

    Raises:
        SttmError: if the folder holds something else, or cannot be written.
    """
    folder = Path(folder)
    try:
        _claim(folder, settings)
        for parent in {(folder / video_path(settings, i)).parent for i in range(len(CLASSES[settings.kind]))}:
            parent.mkdir(parents=True, exist_ok=True)
        missing = [i for i in range(settings.clips) if not (folder / video_path(settings, i)).exists()]
        _run(partial(_write, folder, settings), missing, workers, advance)
        _annotate(folder, settings)
    except OSError as error:
        reason = error.strerror or str(error)
        where = f"synthetic videos cannot be written to {str(folder)!r} ({reason})"
        raise SttmError(f"{where}; choose another folder") from None
    return folder


def _claim(folder: Path, settings: SynthSettings) -> None:
    """Accept an empty folder or one of the same settings, and write the settings there."""
    file, ours = folder / "synth.json", {"version": VERSION, "fps": FPS, **asdict(settings)}
    folder.mkdir(parents=True, exist_ok=True)
    if file.exists():
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            theirs = None
        if theirs != ours:
            raise SttmError(f"{str(folder)!r} holds videos of other settings; use the same ones, or a new folder")
    elif any(folder.iterdir()):
        raise SttmError(f"{str(folder)!r} is not empty and not from sttm synth; choose a new or an empty folder")
    file.write_text(json.dumps(ours, indent=1), encoding="utf-8")


def _run(
    job: Callable[[int], None], indices: list[int], workers: int | None, advance: Callable[[int, int], None]
) -> None:
    """Run a job for each index, on so many processes."""
    workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(indices) // 8))
    if workers <= 1:
        for index in indices:
            job(index)
            advance(1, len(indices))
        return
    # spawn, because a fork of a process with threads may hang; Ctrl-C ends this process, which ends the others
    with get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        for _ in pool.imap_unordered(job, indices, chunksize=8):
            advance(1, len(indices))


def _annotate(folder: Path, settings: SynthSettings) -> None:
    """Write the tracks, and the annotation files of the kind."""
    clips = [
        design(settings.kind, i, settings.seed, frames=settings.frames, size=settings.size)[0]
        for i in range(settings.clips)
    ]
    with (folder / "tracks.jsonl").open("w", encoding="utf-8") as lines:
        for index, clip in enumerate(clips):
            tracks = {name: np.round(track, 2).tolist() for name, track in clip.tracks.items()}
            video = video_path(settings, index).as_posix()
            record = {"id": str(index), "video": video, "label": clip.label, **tracks}
            lines.write(json.dumps(record, separators=(",", ":")) + "\n")
    write = _annotate_motion if settings.kind == "motion" else _annotate_scene
    write(folder, settings, clips)


def _annotate_motion(folder: Path, settings: SynthSettings, clips: list[SyntheticClip]) -> None:
    """Write the annotation files of Something-Something v2."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    answers = []
    for index, clip in enumerate(clips):
        split = settings.split(index)
        if split == "test":
            rows[split].append({"id": str(index)})
            answers.append(f"{index};{clip.label}\n")
            continue
        label = clip.template.lower()
        for name in clip.names:
            label = label.replace("[something]", name, 1)
        row = {"id": str(index), "label": label, "template": clip.template, "placeholders": list(clip.names)}
        rows[split].append(row)
    for split, entries in rows.items():
        lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
        (folder / f"{split}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    (folder / "test-answers.csv").write_text("".join(answers), encoding="utf-8")
    labels = {label: str(number) for number, label in enumerate(MOTION_CLASSES)}
    (folder / "labels.json").write_text(json.dumps(labels, indent=1), encoding="utf-8")


def _annotate_scene(folder: Path, settings: SynthSettings, clips: list[SyntheticClip]) -> None:
    """Write the annotation files of Kinetics."""
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        with (folder / f"kinetics_{name}.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
            for index, clip in enumerate(clips):
                if settings.split(index) == split:
                    table.writerow((clip.label, _youtube_id(index), 0, _seconds(settings), name))

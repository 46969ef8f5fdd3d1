"""Every config in configs/: it parses, its header is complete and right, and it trains."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import pytest
import torch
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)
from transformers.models.videomae import modeling_videomae

import sttm
from sttm.backbones import backbone_of
from sttm.config import Settings, load
from sttm.config.reading import INHERIT
from sttm.synth.videos import SynthSettings, make
from tests.helpers import ROOT, tiny_model

CONFIGS = sorted(
    str(path.relative_to(ROOT / "configs"))
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.name not in ("base.yaml", "ut_interaction.yaml", "grid_words.yaml")
)
PUBLIC = [name for name in CONFIGS if "/" in name]
PLAIN = [name for name in PUBLIC if "-sttm" not in name]
MORE = [name for name in PUBLIC if name.endswith("-sttm-frames.yaml")]
CLASSES = {"kinetics400": 400, "ssv2": 174}
GPUS, GPU_SPEED = 8, 50e12  # multiply-adds a second that the headers' times assume
KINETICS_FRAMES = 250  # of ten seconds, at the least of the usual rates


def videomae(width: int, depth: int, heads: int) -> Callable[[int, int], Any]:
    def build(frames: int, classes: int) -> Any:
        sizes: dict[str, Any] = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads)
        sizes |= dict(intermediate_size=4 * width, num_frames=frames, num_labels=classes)
        return VideoMAEForVideoClassification(VideoMAEConfig(**sizes))

    return build


def timesformer(frames: int, classes: int) -> Any:
    sizes: dict[str, Any] = dict(num_frames=frames, num_labels=classes)
    return TimesformerForVideoClassification(TimesformerConfig(**sizes))


def vivit(frames: int, classes: int) -> Any:
    sizes: dict[str, Any] = dict(num_frames=frames, num_labels=classes)
    return VivitForVideoClassification(VivitConfig(**sizes))


def vjepa2(frames: int, classes: int) -> Any:
    sizes: dict[str, Any] = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, mlp_ratio=4)
    sizes |= dict(crop_size=256, frames_per_clip=frames, num_labels=classes)
    return VJEPA2ForVideoClassification(VJEPA2Config(**sizes))


#: The real models by the first part of a config's name.
MODELS: dict[str, Callable[[int, int], Any]] = {
    "videomae-s": videomae(384, 12, 6),
    "videomae-b": videomae(768, 12, 12),
    "videomae-l": videomae(1024, 24, 16),
    "timesformer": timesformer,
    "vivit": vivit,
    "vjepa2": vjepa2,
}


def settings_of(name: str, *overrides: str) -> Settings:
    return load(ROOT / "configs" / name, overrides)


def header_of(name: str) -> dict[str, str]:
    """Return the fields of the comment at the start of a config; the key of its first line is ""."""
    text = (ROOT / "configs" / name).read_text(encoding="utf-8")
    lines = [line[2:] for line in text.split("\n") if line.startswith("#")]
    fields, last = {"": lines[0]}, ""
    for line in lines[2:]:
        if match := re.match(r"([A-Z]\w+):\s+(.*)", line):
            last = match[1]
            fields[last] = match[2]
        else:
            fields[last] += " " + line.strip()
    return fields


def built(name: str, frames: int) -> Any:
    """Return the model of a config on the meta device, without VideoMAE's position table, which is slow to compute."""
    data_set, _, config = name.partition("/")
    model = next(build for start, build in MODELS.items() if config.startswith(start))
    table = "get_sinusoid_encoding_table"
    with torch.device("meta"), mock.patch.object(modeling_videomae, table, lambda n, width: torch.zeros(1, n, width)):
        return model(frames, CLASSES[data_set])


def plain_of(name: str) -> str:
    return re.sub(r"-sttm(-frames)?", "", name)


def test_each_model_is_there_plain_merged_and_with_more_frames() -> None:
    wanted = {
        f"{data_set}/{model}{variant}.yaml"
        for data_set in CLASSES
        for model in MODELS
        for variant in ("", "-sttm", "-sttm-frames")
    }
    assert wanted == set(PUBLIC)
    assert {"motion.yaml", "motion-sttm.yaml", "scene.yaml", "scene-sttm.yaml"} == set(CONFIGS) - wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_header_has_its_fields(name: str) -> None:
    fields = header_of(name)
    assert {"Command", "Hardware", "Time", "Reference", "Recipe", "Result"} <= fields.keys()
    assert f"sttm train configs/{name}" in fields["Command"]
    assert "an estimate" in fields["Time"]
    assert re.search(r"top-1 \d\d\.\d|[Nn]one|no figure", fields["Reference"])
    assert "measured" in fields["Result"] and fields["Result"].startswith(
        "never run" if name in PUBLIC else "not run yet"
    )
    if name not in PUBLIC:
        assert fields["Data"].startswith("sttm synth data/")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_variant_differs_from_its_plain_config_in_few_lines(name: str) -> None:
    plain, settings = plain_of(name), settings_of(name)
    assert settings.run.output == Path("runs", name.removesuffix(".yaml"))
    if plain == name:
        assert not settings.merging.merges
        return
    text = (ROOT / "configs" / name).read_text(encoding="utf-8")
    assert f"{INHERIT}: {Path(plain).name}" in text
    assert len([line for line in text.split("\n") if line and not line.startswith("#")]) <= 9
    assert settings.merging.learned and (settings.merging.match_frames is not None) == (name in MORE)
    assert name in MORE or settings.merging.compute == 0.62
    same = {"data", "augment", "distillation", "evaluation"} | ({"model"} if name not in MORE else set())
    assert settings.model_dump(include=same) == settings_of(plain).model_dump(include=same)


@pytest.mark.parametrize("name", PLAIN)
def test_the_time_is_worked_out_from_the_settings(name: str) -> None:
    settings, fields = settings_of(name), header_of(name)
    assert settings.model.frames is not None and settings.optimizer.epochs is not None
    macs = sttm.macs(built(name, settings.model.frames))
    stated = re.search(r"about ([\d.]+) hours.*: ([\d.]+) G multiply-adds a clip x ([\d,]+) videos", fields["Time"])
    assert stated and stated[2] == f"{macs / 1e9:.1f}"
    passes = 4 if settings.model.checkpointing else 3
    clips = int(stated[3].replace(",", "")) * settings.augment.repeats * settings.optimizer.epochs
    hours = macs * clips * passes / (GPUS * GPU_SPEED) / 3600
    assert float(stated[1]) == pytest.approx(hours, rel=0.15, abs=0.06)
    for variant, share in (("-sttm", 0.62), ("-sttm-frames", 1.0)):
        variant_time = re.match(r"about ([\d.]+) hours", header_of(name.replace(".yaml", f"{variant}.yaml"))["Time"])
        assert variant_time and float(variant_time[1]) == pytest.approx(hours * share, rel=0.15, abs=0.06)


@pytest.mark.parametrize("name", PLAIN)
def test_the_batch_is_shared_out_evenly(name: str) -> None:
    settings = settings_of(name)
    optimizer, repeats = settings.optimizer, settings.augment.repeats
    assert optimizer.micro_batch is not None
    assert optimizer.batch_size % (GPUS * optimizer.micro_batch) == 0
    assert optimizer.micro_batch % (2 * repeats) == 0  # neighbours are mixed two by two


@pytest.mark.parametrize("name", MORE)
def test_more_frames_cost_what_the_plain_model_costs(name: str) -> None:
    settings, plain = settings_of(name), settings_of(plain_of(name))
    frames, fewer = settings.model.frames, plain.model.frames
    assert frames is not None and fewer is not None and settings.merging.match_frames == fewer < frames
    budget = sttm.macs(built(name, fewer))
    share = budget / sttm.macs(built(name, frames))
    said = re.match(r"([\d.]+) of what (\d+) frames cost the plain model", header_of(name)["Compute"])
    assert said and said[1] == f"{share:.3f}" and int(said[2]) == frames
    # The first merger joins two time steps, so there is an even number of them; two more would leave less than half.
    steps = backbone_of(built(name, frames)).grid(built(name, frames), clip(name, frames)).frames
    assert steps % 2 == 0
    assert share >= 0.5 > budget / sttm.macs(built(name, frames + 2 * frames // steps))
    plan = sttm.apply(built(name, frames), compute=share, learned=True)
    assert budget - 0.01 * plan.macs_before <= plan.macs_after <= budget
    assert plan.mergers[0].frames_before == 2 * plan.mergers[0].frames


def clip(name: str, frames: int) -> tuple[int, int, int, int]:
    side = 256 if "vjepa2" in name else 224
    return frames, 3, side, side


@pytest.mark.parametrize("name", PUBLIC)
def test_clips_are_sampled_as_the_data_set_wants(name: str) -> None:
    model, augment = settings_of(name).model, settings_of(name).augment
    assert model.frames is not None
    if name.startswith("ssv2"):
        assert (model.sampling, augment.flip) == ("uniform", 0)
    else:
        assert model.sampling == "dense" and model.stride is not None
        assert (model.frames - 1) * model.stride < KINETICS_FRAMES


# --- two steps of training ----------------------------------------------------------------------------------------


def write_video(path: Path, codec: str, seed: int) -> None:
    """Write a video of six frames of noise."""
    pictures_THW3 = np.random.default_rng(seed).integers(0, 256, (6, 40, 48, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as box:
        stream: Any = box.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = *pictures_THW3.shape[1:3], "yuv420p"
        for picture in pictures_THW3:
            box.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        box.mux(stream.encode())


def small_kinetics(folder: Path) -> None:
    """Write two classes in the official format, one folder name with spaces and one with underscores."""
    for split, number in (("train", 4), ("val", 2)):
        rows = []
        for i in range(number):
            label, youtube_id = ("riding a bike", "air drumming")[i % 2], f"{split[:3]}id{i:06d}"
            written = label if i % 2 else label.replace(" ", "_")
            write_video(folder / split / written / f"{youtube_id}_000003_000013.mp4", "libx264", i)
            rows.append((label, youtube_id, 3, 13, split, 0))
        (folder / "annotations").mkdir(exist_ok=True)
        with (folder / "annotations" / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("label", "youtube_id", "time_start", "time_end", "split", "is_cc"), *rows])


def small_ssv2(folder: Path) -> None:
    """Write two classes in the official format."""
    templates = ("Pushing [something] from left to right", "Throwing [something]")
    (folder / "labels").mkdir(parents=True)
    named = {template.replace("[something]", "something"): str(i) for i, template in enumerate(templates)}
    (folder / "labels" / "labels.json").write_text(json.dumps(named))
    for split, ids in (("train", range(1, 5)), ("validation", range(5, 7))):
        entries = []
        for i in ids:
            write_video(folder / "20bn-something-something-v2" / f"{i}.webm", "libvpx", i)
            template = templates[i % 2]
            label = template.lower().replace("[something]", "a cup")
            entries.append({"id": str(i), "label": label, "template": template, "placeholders": ["a cup"]})
        (folder / "labels" / f"{split}.json").write_text(json.dumps(entries))


def small_ut_interaction(folder: Path) -> None:
    """Write seven classes with its annotations.csv, scenes and crops of one person."""
    rows = []
    for i, label in enumerate(("shake_hands", "hug", "kick", "point", "punch", "push", "other") * 2):
        for view in ("scene", "person0"):
            path = f"{view}/{label}/set1_{i}.mp4"
            write_video(folder / path, "libx264", i)
            rows.append((path, label, "train" if i < 7 else "test", i % 7, 1, i + 1, view))
    with (folder / "annotations.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "label_id", "set", "sequence", "view"), *rows])


def small_grid_words(folder: Path) -> None:
    """Write two words and a letter in its three splits."""
    rows = []
    for i, split in enumerate(("train", "train", "train", "validation", "test") * 2):
        for slot, label in (("colour", "blue"), ("digit", "two"), ("letter", "a")):
            write_video(folder / "clips" / f"{i}_{slot}.mp4", "libx264", i)
            rows.append((f"clips/{i}_{slot}.mp4", label, split, slot, str(i), 16))
    with (folder / "annotations.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "slot", "sentence", "frames"), *rows])


PROCESSORS = {"videomae": "VideoMAE", "timesformer": "VideoMAE", "vivit": "Vivit", "vjepa2": "VJEPA2"}


@pytest.fixture(scope="module")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small data sets where the configs expect them, and a tiny model of each family."""
    folder = tmp_path_factory.mktemp("training")
    small_kinetics(folder / "data" / "kinetics400")
    small_ssv2(folder / "data" / "ssv2")
    for kind in ("motion", "scene"):
        made = SynthSettings(kind=kind, clips=20, frames=8, size=32, train=0.9, validation=0.05, test=0.05)
        make(folder / "data" / kind, made, workers=1)
    for family, processor_name in PROCESSORS.items():
        torch.manual_seed(0)
        sttm.save(
            tiny_model(family, 8 if family == "timesformer" else 32 if family == "vivit" else 16), folder / family
        )
        processor = {
            "image_processor_type": f"{processor_name}ImageProcessor",
            "size": {"shortest_edge": 36},
            "crop_size": {"height": 32, "width": 32},
        }
        (folder / family / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def start_of(name: str, folder: Path) -> Path:
    """Return the tiny model that replaces the checkpoint of a config; it takes the frames of the plain config."""
    return folder / Path(name).stem.split("-")[0]


def trained(name: str, folder: Path) -> dict[str, Any]:
    from sttm.training.run import train

    small = ["optimizer.epochs=null", "optimizer.steps=2", "optimizer.batch_size=4", "optimizer.micro_batch=4"]
    small += ["data.workers=0", "run.device=cpu", "run.trackers=[]", "run.evaluate_every=2"]
    if name in PUBLIC:
        small.append(f"model.start={start_of(name, folder)}")
    return train(settings_of(name, *small))


#: One of each family, data set and variant; the others take as long again, many times over.
QUICK = {"motion-sttm.yaml", "scene.yaml", "kinetics400/videomae-b-sttm.yaml", "kinetics400/vjepa2.yaml"}
QUICK |= {"ssv2/timesformer-sttm-frames.yaml", "ssv2/vivit-sttm.yaml"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_takes_two_steps(name: str, training_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(training_folder)
    results = trained(name, training_folder)
    settings = settings_of(name)
    assert results["steps"] == 2 and not results["missing"] and not results["unreadable"]
    wanted = settings.merging.compute or 1.0
    if settings.merging.match_frames is None:
        assert wanted - 0.01 <= results["compute"] <= wanted
    else:
        plain = sttm.macs(sttm.load(start_of(name, training_folder)))
        assert 0.97 * plain <= results["macs"] <= plain
    model = sttm.load(settings.run.output / "model")
    assert sttm.macs(model) == results["macs"]
    assert backbone_of(model).clip_shape(model)[0] == settings.model.frames


def check_real(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Check the header of a config of real clips; return the results of two steps of it, and of its other command."""
    from sttm.training.run import train

    header = header_of(f"{name}.yaml")
    assert {"Command", "Data", "Hardware", "Time", "Reference", "Recipe", "Result"} <= header.keys()
    (folder / "project").mkdir()
    monkeypatch.chdir(folder / "project")
    small = ["optimizer.epochs=null", "optimizer.steps=2", "optimizer.batch_size=4", "run.trackers=[]"]
    other = [part.split(" ")[0] for part in header["Command"].split("--set ")[1:]]
    return [train(settings_of(f"{name}.yaml", *small, *changes)) for changes in ([], other)]


def test_ut_interaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the real models on its scenes, six classes of seven."""
    small_ut_interaction(tmp_path / "shared" / "data" / "ut-interaction")
    merged, plain = check_real("ut_interaction", tmp_path, monkeypatch)
    assert (merged["clips"], merged["test"]["clips"], merged["steps"]) == (6, 6, 2) and 0.61 < merged["compute"] <= 0.62
    assert plain["compute"] == 1


def test_grid_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the real models on its words, letters left out."""
    small_grid_words(tmp_path / "shared" / "data" / "grid-words")
    merged, still = check_real("grid_words", tmp_path, monkeypatch)
    assert (merged["clips"], merged["test"]["clips"], merged["steps"]) == (12, 4, 2) and 0.34 < merged[
        "compute"
    ] <= 0.35
    assert still["macs"] < merged["macs"]

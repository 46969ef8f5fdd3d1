"""The demo on small models that know the motions."""

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

import sttm
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Sampling
from sttm.errors import SttmError
from sttm.evaluation import predict
from sttm.synth.clips import render
from sttm.synth.motions import MOTION_CLASSES
from sttm.visual import demo

CLIPS, SEED = 20, 3
WORDS = tuple(sorted(file.stem for file in demo.EXAMPLES.glob("*.mp4")))
CARD = """---
model-index:
- results:
  - metrics: [{type: accuracy, value: 0.987, clips: 4321}]
---
# A card
"""
PREPARE = Preprocess("VideoMAE", Sampling(8), 32, (32, 32), 1 / 255, 0.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def small(labels: Sequence[str]) -> VideoMAEForVideoClassification:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96)
    sizes |= dict(image_size=32, patch_size=8, num_frames=8)
    model = VideoMAEForVideoClassification(VideoMAEConfig(**sizes, id2label=dict(enumerate(labels)))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # livelier: answers differ from clip to clip
    return model


@pytest.fixture(scope="module")
def guesser() -> VideoMAEForVideoClassification:
    """An untrained model that is right now and then: its answers are centred, its classes named after them."""
    model, made = small(MOTION_CLASSES), []
    for index, label in enumerate(MOTION_CLASSES):
        clip_THWC, truth, _ = render("motion", index, SEED, frames=16, size=112)
        made.append(torch.from_numpy(clip_THWC[np.linspace(0, 15, 8).astype(int)]).permute(0, 3, 1, 2))
        assert truth == label
    with torch.no_grad():
        logits_BK = model(torch.cat([PREPARE(frames_TCHW) for frames_TCHW in made])).logits
        model.classifier.bias -= logits_BK.mean(0)
    best_B = (logits_BK - logits_BK.mean(0)).argmax(-1).tolist()
    named = dict(zip(best_B, MOTION_CLASSES, strict=True))
    rest = [label for label in MOTION_CLASSES if label not in named.values()]
    model.config.id2label = {k: named[k] if k in named else rest.pop() for k in range(len(MOTION_CLASSES))}
    assert list(model.config.id2label.values()) != list(MOTION_CLASSES)  # text must match them, not numbers
    return model


def save(model: nn.Module, folder: Path, prepare: Preprocess = PREPARE) -> str:
    sttm.save(model, folder)
    prepare.to_folder(folder)
    return str(folder)


@pytest.fixture(scope="module")
def names(tmp_path_factory, guesser) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    plain, merged = guesser, copy.deepcopy(guesser)
    sttm.apply(merged, compute=0.5, learned=True)
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            if ".merger." in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return {"plain": save(plain, folder / "plain"), "merged": save(merged, folder / "<merged>")}


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> tuple[str, str]:
    """An untrained pair that knows the words; the plain one has a card, the merged one none."""
    folder = tmp_path_factory.mktemp("words")
    plain, merged = small(WORDS), small(WORDS)
    sttm.apply(merged, compute=0.5)
    pair = save(plain, folder / "plain"), save(merged, folder / "merged")
    (folder / "plain" / "README.md").write_text(CARD)
    return pair


@pytest.fixture(scope="module")
def told(names, words, tmp_path_factory):
    folder, advanced = tmp_path_factory.mktemp("demo"), []
    options = dict(clips=CLIPS, seed=SEED, batch=8, workers=1, words=words, **names)
    result = demo.run(folder, advance=lambda videos, total: advanced.append((videos, total)), **options)
    assert sum(videos for videos, _ in advanced) == advanced[-1][1] == 2 * CLIPS + len(WORDS)
    return result, folder


def page(told) -> str:
    return Path(told[0]["report"]).read_text(encoding="utf-8")


def test_figures_are_those_of_predict(told, names):
    """The same files through the other engine, labels matched by text, give the same right answers."""
    result, folder = told
    (made,) = folder.glob("motion-*")
    truth = {
        f"{row['id']}.mp4": row["template"].replace("[", "").replace("]", "")
        for row in json.loads((made / "validation.json").read_text())
    }
    assert len(truth) == CLIPS
    right = {}
    for kind, name in names.items():
        records = list(
            predict.predict_files(predict.find_videos([str(made / "videos")]), sttm.load(name), PREPARE, top_k=1)
        )
        right[kind] = {
            record["path"]
            for record in records
            if record["predictions"][0]["label"] == truth[Path(record["path"]).name]
        }
    assert len(right["plain"]) > len(right["merged"])  # or the next lines would show little
    assert [row["correct"] for row in result["rows"]] == [len(right["plain"]), len(right["merged"])]
    assert result["only_right"]["plain"] == len(right["plain"] - right["merged"])
    assert result["only_right"]["merged"] == len(right["merged"] - right["plain"])


def test_rows_hold_costs_and_spreads(told, names):
    result, _ = told
    plain, merged = result["rows"]
    assert [plain["model"], merged["model"]] == [names["plain"], names["merged"]]
    assert plain["compute"] == 1 and 0.49 <= merged["compute"] <= 0.5
    assert merged["gmacs"] * 1e9 == pytest.approx(sttm.macs(sttm.load(names["merged"])))
    assert result["ideal_speedup"] == pytest.approx(1 / merged["compute"])
    for row in (plain, merged):
        assert row["total"] == CLIPS and row["top1"] == row["correct"] / CLIPS
        assert row["top1_interval"]["low"] <= row["top1"] <= row["top1_interval"]["high"]
        assert 0 < row["clips_per_s"]["p10"] <= row["clips_per_s"]["p50"] <= row["clips_per_s"]["p90"]
    assert result["batches_timed"] == 2  # two of 8, and one of 4 that is too small to compare
    json.dumps(result)


def test_page_needs_nothing_beside_itself(told):
    html = page(told)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert len(sources) == demo.PICTURES + len(WORDS) and all(source.startswith("data:image/") for source in sources)
    assert "<script" not in html and "@import" not in html and "url(" not in html
    assert "prefers-color-scheme: dark" in html
    assert "&lt;merged&gt;" in html and "<merged>" not in html  # names are text
    for text in ("--clips 20 --seed 3", "our reading of the abstract", told[0]["machine"], "95 % interval"):
        assert text in html


def test_real_videos_are_counted_and_their_whole_test_split_is_told(told, words):
    """As many right as `predict` has, and what the card says; no figure where there is no card."""
    result, html = told[0]["words"], page(told)
    assert len(WORDS) == result["clips"] == 6 and result["batches_timed"] == demo.TURNS
    for name, row in zip(words, result["rows"], strict=True):
        records = predict.predict_files(
            predict.find_videos([str(demo.EXAMPLES)], note=lambda _: None), sttm.load(name), PREPARE, top_k=1
        )
        assert row["correct"] == sum(r["predictions"][0]["label"] == Path(r["path"]).stem for r in records)
        assert f">{row['correct']} of 6</td>" in html
    assert result["rows"][0]["card"]["value"] == 0.987 and result["rows"][1]["card"] is None
    assert "98.7 % of 4,321 clips" in html and "CC BY 4.0" in html
    assert 0.49 <= result["rows"][1]["compute"] <= 0.5


def test_table_shows_what_was_measured(told, capsys):
    from rich.console import Console

    Console(width=200).print(*demo.tables(told[0]))
    out = capsys.readouterr().out
    assert "98.7 % of 4,321 clips" in out and "of 6" in out
    for row in told[0]["rows"]:
        assert f"{100 * row['top1']:.1f} %" in out and f"{row['gmacs']:.3g}" in out
    assert "Speed-up" in out and told[0]["machine"] in out


def test_second_run_uses_the_same_videos(told, names, words):
    result, folder = told
    videos = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}
    again = demo.run(folder, clips=CLIPS, seed=SEED, batch=8, workers=1, words=words, **names)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")} == videos
    assert len(videos) == CLIPS
    assert [row["correct"] for row in again["rows"]] == [row["correct"] for row in result["rows"]]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": 0}, "seed=0 made the videos that the bundled models learned from"),
        ({"clips": 3}, "clips is 3"),
        ({"batch": 0}, "batch=0"),
        ({"plain": "merged"}, "needs a plain model"),
        ({"merged": "plain"}, "needs a merged model"),
        ({"merged": "other classes"}, "do not take the same pixels or do not know the same classes"),
        ({"plain": "other pixels"}, "do not take the same pixels or do not know the same classes"),
    ],
)
def test_mistakes_are_one_sentence(names, words, guesser, tmp_path, changed, sentence):
    others = dict(names)
    if "other classes" in changed.values():
        model = small(("a", "b"))
        sttm.apply(model, compute=0.5)
        others["other classes"] = save(model, tmp_path / "other")
    if "other pixels" in changed.values():
        others["other pixels"] = save(guesser, tmp_path / "other", replace(PREPARE, mean=(0.0, 0.0, 0.0)))
    options: dict[str, Any] = {"clips": CLIPS, "seed": SEED, "workers": 1, "words": words, **names}
    options |= {key: others.get(value, value) for key, value in changed.items()}
    with pytest.raises(SttmError, match=sentence):
        demo.run(tmp_path / "demo", **options)


def test_models_of_other_classes_are_refused(words, tmp_path):
    plain, merged = small(("a", "b")), small(("a", "b"))
    sttm.apply(merged, compute=0.5)
    names: dict[str, Any] = {"plain": save(plain, tmp_path / "p"), "merged": save(merged, tmp_path / "m")}
    with pytest.raises(SttmError, match="knows no class"):
        demo.run(tmp_path / "demo", clips=CLIPS, seed=SEED, workers=1, words=words, **names)

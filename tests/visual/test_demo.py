"""The demo on small stand-in models, and its pictures, token by token."""

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
from sttm.backbones.base import Grid
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Sampling
from sttm.errors import SttmError
from sttm.evaluation import predict
from sttm.merging.tokens import MergeMap
from sttm.synth.clips import render
from sttm.synth.motions import MOTION_CLASSES
from sttm.visual import demo
from sttm.visual import pictures as show

CLIPS, SEED = 20, 3
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
def told(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return demo.run(folder, clips=CLIPS, seed=SEED, batch=8, workers=1, **names), folder


def page(told) -> str:
    return Path(told[0]["report"]).read_text(encoding="utf-8")


# --- the demo -----------------------------------------------------------------------------------------------


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
        records = list(predict.predict(predict.find_videos([str(made)]), sttm.load(name), PREPARE, top_k=1))
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
    assert len(sources) == demo.PICTURES and all(source.startswith("data:image/") for source in sources)
    assert "<script" not in html and "@import" not in html and "url(" not in html
    assert "prefers-color-scheme: dark" in html
    assert "&lt;merged&gt;" in html and "<merged>" not in html  # names are text
    for text in ("--clips 20 --seed 3", "our reading of the abstract", told[0]["machine"], "95 % interval"):
        assert text in html


def test_table_shows_what_was_measured(told, capsys):
    from rich.console import Console

    Console(width=200).print(demo.table(told[0]))
    out = capsys.readouterr().out
    for row in told[0]["rows"]:
        assert f"{100 * row['top1']:.1f} %" in out and f"{row['gmacs']:.3g}" in out
    assert "Speed-up" in out and told[0]["machine"] in out


def test_second_run_uses_the_same_videos(told, names):
    result, folder = told
    videos = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}
    again = demo.run(folder, clips=CLIPS, seed=SEED, batch=8, workers=1, **names)
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
def test_mistakes_are_one_sentence(names, guesser, tmp_path, changed, sentence):
    others = dict(names)
    if "other classes" in changed.values():
        model = small(("a", "b"))
        sttm.apply(model, compute=0.5)
        others["other classes"] = save(model, tmp_path / "other")
    if "other pixels" in changed.values():
        others["other pixels"] = save(guesser, tmp_path / "other", replace(PREPARE, mean=(0.0, 0.0, 0.0)))
    options: dict[str, Any] = {"clips": CLIPS, "seed": SEED, "workers": 1, **names}
    options |= {key: others.get(value, value) for key, value in changed.items()}
    with pytest.raises(SttmError, match=sentence):
        demo.run(tmp_path / "demo", **options)


def test_models_of_other_classes_are_refused(tmp_path):
    plain, merged = small(("a", "b")), small(("a", "b"))
    sttm.apply(merged, compute=0.5)
    names: dict[str, Any] = {"plain": save(plain, tmp_path / "p"), "merged": save(merged, tmp_path / "m")}
    with pytest.raises(SttmError, match="knows no class"):
        demo.run(tmp_path / "demo", clips=CLIPS, seed=SEED, workers=1, **names)


# --- pictures -----------------------------------------------------------------------------------------------

GRID = Grid(frames=4, height=3, width=5, prefix=0)


def made_map(frames_out=2, slots_out=6, seed=0, trajectory=None, meta=None) -> MergeMap:
    """Tokens that go to a random slot of their own window."""
    draw = np.random.default_rng(seed)
    window = np.arange(4) // (4 // frames_out)
    assignment = torch.from_numpy(draw.integers(0, slots_out, (1, 4, 15)) + window[:, None] * slots_out)
    total = frames_out * slots_out
    size, position = torch.ones(1, total), torch.zeros(1, total, 3)
    grid = ((4, 15), (frames_out, slots_out))
    return MergeMap(assignment.reshape(1, 60), size, position, grid, meta, trajectory)


def frames(seed=0) -> torch.Tensor:
    """Eight pictures of 30 x 50 pixels: tokens of 10 x 10, tubelets of two."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (8, 3, 30, 50), dtype=torch.uint8, generator=draw)


def test_tokens_get_the_average_colour_of_their_slot():
    pixels_TCHW, maps = frames(), [made_map()]
    maps[0].assignment[0, 7] = -1
    slot_THW = show.slots(maps, GRID)
    fused_THWC = show._fused(pixels_TCHW.permute(0, 2, 3, 1).numpy(), slot_THW)
    owner = np.repeat(np.repeat(np.repeat(slot_THW, 2, 0), 10, 1), 10, 2)  # the slot of every pixel
    for t, y, x in np.ndindex(slot_THW.shape):
        slot = slot_THW[t, y, x]
        wanted = pixels_TCHW.permute(0, 2, 3, 1).numpy()[owner == slot].mean(0) if slot >= 0 else 0
        assert np.abs(fused_THWC[t, y, x] - wanted).max() <= 0.51
    assert (fused_THWC[0, 1, 2] == 0).all()


def test_slots_follow_several_mergers():
    first, second = made_map(2, 6), made_map(2, 6, seed=1)
    onward = second.assignment[:, [0, 1, 2, 3, 4, 5, 30, 31, 32, 33, 34, 35]]
    later = MergeMap(onward, first.size, first.position, ((2, 6), (2, 6)))
    slot_THW = show.slots([first, later], GRID)
    for number, slot in enumerate(slot_THW.reshape(-1)):
        assert slot == later.assignment[0, first.assignment[0, number]]


def test_frames_that_run_one_by_one_keep_slots_of_their_own():
    slot_BN, size, position = torch.zeros(8, 15, dtype=torch.int64), torch.ones(8, 2), torch.zeros(8, 2, 3)
    alone = MergeMap(slot_BN, size, position, ((1, 15), (1, 2)))
    grid = Grid(frames=1, height=3, width=5, prefix=1, sequences=4)
    assert show.slots([alone], grid, clip=1)[:, 0, 0].tolist() == [0, 2, 4, 6]


def test_lines_part_tokens_of_different_slots_only():
    slot_HW = np.array([[0, 0, 1], [0, 2, 2]])
    image = np.asarray(show._outlined(np.zeros((2, 3, 3), np.uint8), slot_HW, (30, 20))).max(-1) > 0
    lit = {  # a point on every inner side
        "00|01": image[5, 10], "01|02": image[5, 20], "10|11": image[15, 10], "11|12": image[15, 20],
        "00/10": image[10, 5], "01/11": image[10, 15], "02/12": image[10, 25],
    }  # fmt: skip
    assert {side for side, on in lit.items() if on} == {"01|02", "10|11", "01/11", "02/12"}


def test_an_object_that_moves_leaves_its_way():
    """A slot that grew from the first token and moves right by one token a frame; others stay."""
    trajectory = torch.zeros(1, 12, 4, 2)
    trajectory[0, 3, :, 1] = torch.arange(4) * 0.5  # five tokens across span [-1, 1]: one is half a unit
    meta = torch.zeros(1, 12, dtype=torch.int64)
    first = made_map(trajectory=trajectory, meta=meta)
    (path_T2, *_) = show._paths(first, GRID, 0)
    place_T2 = show._in_pixels(path_T2[None], GRID, (50, 30))[0]
    assert place_T2 == pytest.approx(np.array([[5, 5], [15, 5], [25, 5], [35, 5]]))
    picture = show.merge_picture(frames(), [first], GRID)
    cell = (show.CELL, round(show.CELL * 30 / 50))
    step = show.CAPTION + cell[1] + show.GAP
    for t, (x, y) in enumerate(place_T2):
        across = show.GAP + t * (cell[0] + show.GAP) + round(x / 50 * cell[0])
        colour = picture.getpixel((across, 2 * step + show.CAPTION + round(y / 30 * cell[1])))
        assert colour == show.PATH_COLOURS[0]


def test_a_way_is_far_and_step_by_step():
    """Not the slot that leaps between two places that look alike, nor a second slot on the same object."""
    trajectory = torch.zeros(1, 12, 4, 2)
    trajectory[0, 3, :, 1] = torch.arange(4) * 0.3
    trajectory[0, 4, :, 1] = torch.arange(4) * 0.29
    trajectory[0, 5, :, 0] = torch.tensor([0.0, 2, 0, 2])
    meta = torch.zeros(1, 12, dtype=torch.int64)
    path_KT2 = show._paths(made_map(trajectory=trajectory, meta=meta), GRID, 0)
    assert path_KT2.shape == (1, 4, 2) and path_KT2[0, :, 1] == pytest.approx(np.arange(4) * 0.3 - 1)


def test_a_merger_that_follows_nothing_has_no_third_row():
    two, three = (show.merge_picture(frames(), [m], GRID) for m in (made_map(), moving()))
    assert two.height < three.height and two.width == three.width


def moving() -> MergeMap:
    trajectory = (torch.arange(4) * 0.3)[None, None, :, None].expand(1, 12, 4, 2)
    return made_map(trajectory=trajectory, meta=torch.zeros(1, 12, dtype=torch.int64))


def test_pictures_refuse_what_does_not_belong():
    with pytest.raises(SttmError, match="merges no tokens"):
        show.merge_picture(frames(), [], GRID)
    with pytest.raises(SttmError, match="not of 4 x 5 x 5"):
        show.merge_picture(frames(), [made_map()], Grid(4, 5, 5, 0))
    with pytest.raises(SttmError, match="7 frames"):
        show.merge_picture(frames()[:7], [made_map()], GRID)


def test_restore_undoes_preprocessing():
    made = render("motion", 0, 1, frames=8, size=32)[0]
    frames_TCHW = torch.from_numpy(made).permute(0, 3, 1, 2)
    for offset, factor in ((0.0, 1 / 255), (-1.0, 1 / 127.5)):
        prepare = replace(PREPARE, offset=offset, rescale_factor=factor)
        back = show.restore(prepare(frames_TCHW)[0], prepare.mean, prepare.std, factor, offset)
        assert torch.equal(back, frames_TCHW)


def test_page_treats_labels_as_text():
    picture = show.merge_picture(frames(), [made_map()], GRID)
    example = show.Example("<b>$title", picture, [show.Guess("m", '"><script>', 0.5, True)])
    html = show.report("a $b & <c>", "s", ["Model"], [["<i>"]], [("<u>", "$x")], [example])
    for raw in ("<script>", "<i>", "<u>", "<c>"):
        assert raw not in html
    for told in ("a $b &amp; &lt;c&gt;", "&lt;b&gt;$title", "&lt;i&gt;", "$x"):
        assert told in html

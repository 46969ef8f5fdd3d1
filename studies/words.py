"""Train the two small models of spoken words that come with the package, on grid-words.

The data: mouth crops of one speaker of the GRID corpus, 26 words. The merged model is trained from scratch with the
learned merger in from the first step, by the recipe of `studies/scratch.py`, on pixels as `sttm predict` makes them:
the mean picture of a clip stays in. Without it plain models learn too, but from these pixels the plain twin does not
within these steps: it starts from the merged model's weights, mergers taken out, and is trained on. Both stages go on
where they stopped.

A VideoMAE folder cannot hold the table of positions that the studies train with (sinusoids of t, y and x), as
transformers computes its own, of the token's number, when it loads a model. The merged model starts with the first,
because it learns sooner, and moves to the second between two epochs.

How to run, from the project's root (see results/bundled/figures.json for the machine and the seconds it took):
    python studies/words.py merged plain examples report
"""

from __future__ import annotations

import argparse
import csv
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.bundle import BUNDLE, figures_of, text, write_cards, write_figures, write_model
from harness.data import CACHE as STUDIES_CACHE
from harness.data import ClipSet, clip_set, data_root, square
from harness.protocols import BATCH, LRS, SHAPE, SMOOTHING
from harness.training import Recipe, fit, positions, predict
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

import sttm
from sttm.data.transforms.preprocess import Preprocess
from sttm.devices import machine
from sttm.evaluation.metrics import Accuracy

CACHE = STUDIES_CACHE / "words"
DATASET, COMPUTE, SEED = "grid_words", 0.35, 0
FOLDERS = {"merged": "sttm-words", "plain": "sttm-words-plain"}
EPOCHS = {"merged": 24, "plain": 8}
#: Epochs between which the table of positions moves from that of the studies to VideoMAE's own.
MOVES = (6, 12)
#: The first test clip of each of these words, in the order of their names, comes with the package.
EXAMPLES = ("bin", "blue", "with", "seven", "again", "please")


def build() -> Any:
    """Return a VideoMAE with new weights, of the size that the studies train from scratch."""
    torch.manual_seed(SEED)
    names = dict(enumerate(clip_set(DATASET, "train", SHAPE.edge).names))
    config = VideoMAEConfig(
        image_size=SHAPE.edge, patch_size=SHAPE.patch, num_frames=SHAPE.frames, tubelet_size=2,
        hidden_size=SHAPE.width, num_hidden_layers=SHAPE.depth, num_attention_heads=SHAPE.heads,
        intermediate_size=4 * SHAPE.width, id2label=names, label2id={name: number for number, name in names.items()},
    )  # fmt: skip
    model = VideoMAEForVideoClassification(config)
    # At this size the fused kernel is the slower one on a CPU, forwards and backwards.
    model.set_attn_implementation("eager")
    return model


def words_of(split: str) -> ClipSet:
    """Return the words of one split as pixels that `sttm predict` can make."""
    return clip_set(DATASET, split, SHAPE.edge)


def start_of(stage: str) -> Any:
    """Return the model that a stage starts from: new weights with mergers, or the merged model's without them."""
    model = build()
    sttm.apply(model, compute=COMPUTE, learned=True)
    if stage == "plain":
        model.load_state_dict(torch.load(CACHE / "merged-done.pt", weights_only=True)["model"])
        sttm.remove(model)
    return model


def train_stage(stage: str, epochs: int) -> Any:
    """Train one stage to its end, going on from its last checkpoint, and return the model."""
    model, checkpoint, done = start_of(stage), CACHE / f"{stage}.pt", CACHE / f"{stage}-done.pt"
    if done.exists():
        model.load_state_dict(torch.load(done, weights_only=True)["model"])
        return model
    data, validation = map(words_of, ("train", "validation"))
    per_epoch = len(data) // BATCH
    tables = model.videomae.embeddings, model.videomae.embeddings.position_embeddings
    move = partial(_move_positions, *tables) if stage == "merged" else (lambda epoch: None)
    move(torch.load(checkpoint, weights_only=True)["step"] / per_epoch if checkpoint.exists() else 0)

    def after_step(step: int) -> None:
        epoch = (step + 1) / per_epoch
        move(epoch)
        if epoch % 2 == 0:
            right = predict(model, validation, SHAPE.frames) == validation.classes.numpy()
            print(f"{stage}: epoch {epoch:g}, validation {np.mean(right):.4f}", flush=True)

    recipe = Recipe(epochs * per_epoch, BATCH, LRS["muon"], smoothing=SMOOTHING)
    seconds = fit(model, data, SHAPE.frames, SEED, recipe, checkpoint=checkpoint, after_step=after_step)
    training = dict(epochs=epochs, steps=recipe.steps, seconds=round(seconds), machine=machine(torch.device("cpu")))
    torch.save(dict(model=model.state_dict(), training=training), done)
    return model


def _move_positions(embeddings: Any, own: torch.Tensor, epoch: float) -> None:
    """Give the model the table of positions of an epoch: that of the studies, a mix, then VideoMAE's own."""
    share = min(1.0, max(0.0, (epoch - MOVES[0]) / (MOVES[1] - MOVES[0])))
    side = SHAPE.edge // SHAPE.patch
    studied = positions((SHAPE.frames // 2, side, side), SHAPE.width)[None]
    embeddings.position_embeddings = torch.lerp(studied, own, share)


def preprocess_of(data: ClipSet) -> Preprocess:
    """Return the preprocessing of the clips of a set, as the model's folder has it."""
    mean, std = (tuple((level.flatten().expand(3) / 255).tolist()) for level in (data.mean, data.std))
    return replace(square(SHAPE.edge, SHAPE.frames), mean=mean, std=std)


def write_examples() -> None:
    """Copy the example clips into the package, each under its word, and say where they come from."""
    folder = BUNDLE / "examples"
    folder.mkdir(exist_ok=True)
    with (data_root() / "grid-words" / "annotations.csv").open(newline="", encoding="utf-8") as file:
        clips = sorted((row["label"], row["path"]) for row in csv.DictReader(file) if row["split"] == "test")
    first = dict(reversed(clips))
    for word in EXAMPLES:
        shutil.copyfile(data_root() / "grid-words" / first[word], folder / f"{word}.mp4")
    lines = [f"| `{word}.mp4` | {Path(first[word]).stem.split('_')[0]} |" for word in EXAMPLES]
    (folder / "README.md").write_text(text("examples.md").substitute(clips="\n".join(lines)), encoding="utf-8")


@torch.no_grad()
def tested(name: str) -> dict[str, Any]:
    """Return what a bundled model gets right of the test split, in fp32 as `sttm predict` runs."""
    model, data, counted = sttm.load(BUNDLE / name), words_of("test"), Accuracy()
    for indices in np.array_split(np.arange(len(data)), 1 + len(data) // 100):
        counted += Accuracy.of(model(data.clips(indices, SHAPE.frames)).logits, data.classes[indices])
    return dict(top1=counted.share, interval=counted.interval, clips=counted.total, macs=sttm.macs(model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=[*FOLDERS, "examples", "report"])
    parser.add_argument("--threads", type=int, default=1)
    for stage, epochs in EPOCHS.items():
        parser.add_argument(f"--{stage}-epochs", type=int, default=epochs)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    CACHE.mkdir(parents=True, exist_ok=True)
    for stage, name in FOLDERS.items():
        if stage in options.stages:
            model = train_stage(stage, getattr(options, f"{stage}_epochs"))
            write_model(model, name, preprocess_of(words_of("train")))
    if "examples" in options.stages:
        write_examples()
    if "report" in options.stages:
        rows = {}
        for stage, name in FOLDERS.items():
            done = CACHE / f"{stage}-done.pt"
            known = torch.load(done, weights_only=True)["training"] if done.exists() else figures_of(name)
            training = {key: known[key] for key in ("epochs", "steps", "seconds", "machine")}
            rows[name] = tested(name) | training | dict(batch=BATCH, seed=SEED, dataset=DATASET)
        write_figures(rows)
        write_cards(*rows)


if __name__ == "__main__":
    main()

"""Train the two small models that come with the package, on synthetic videos of the kind *motion*.

The plain one is trained from scratch: first with an auxiliary task, to predict where everything is in every frame (the
tracks that synthetic videos come with; this head is dropped), then on the classes alone. The merged one is the plain
one with the learned merger put in, tuned. The figures are of clips of another seed, made after every choice. All stages
go on where they stopped.

A grid of 8 x 8 x 8 tokens, that of the models in the package, is large enough that merging saves time, and slow to
train: these models start from a plain one on a grid of 8 x 5 x 5, which is not in the package. It has the same blocks;
its patch embedding is resized. (The one that those in the package started from was trained by AdamW alone, at commit
9447f1d.)

How to run, from the project's root (see results/bundled/figures.json for the machine and the seconds it took):
    python studies/bundled.py data shared plain --size small
    python studies/bundled.py data shared plain merged report
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness.bundle import BUNDLE, figures_of, write_cards, write_figures, write_model
from harness.data import CACHE as STUDIES_CACHE
from harness.synthetic import MIRRORED_TRACKS, TRACKS, changed_classes, track_targets
from harness.training import autocast, optimizers_of, order, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, smooth_l1_loss
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

import sttm
from sttm.data.transforms.preprocess import Preprocess
from sttm.data.video.read import Sampling, read
from sttm.devices import machine
from sttm.evaluation.metrics import Accuracy
from sttm.synth.motions import MOTION_CLASSES
from sttm.synth.videos import SynthSettings, make


@dataclass(frozen=True)
class Size:
    """The size of the models and of their clips, and how they are trained.

    Attributes:
        resize: the side that clips are resized to; the model takes its first `edge` pixels.
        steps: of each stage.
        as_made: steps of the shared stage on clips as they were made; from then on mirrored and reversed too.
    """

    name: str
    resize: int
    edge: int
    patch: int
    steps: dict[str, int]
    as_made: int

    @property
    def cache(self) -> Path:
        """Return the folder of the pixels and the checkpoints."""
        return CACHE / self.name

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(
            processor="VideoMAE", sampling=Sampling(FRAMES), resize=self.resize, crop=(self.edge, self.edge),
            rescale_factor=1 / 255, offset=0.0, mean=MEAN, std=STD, resize_with="torch",
        )  # fmt: skip


CACHE = STUDIES_CACHE / "bundled"
SIZES = (
    Size("large", 64, 64, 8, dict(shared=1000, plain=700, merged=400), as_made=0),
    Size("small", 56, 55, 11, dict(shared=6000, plain=1500), as_made=3000),
)
WIDTH, DEPTH, HEADS, COMPUTE = 144, 4, 3, 0.5
#: One merger: in so small a model a second one, with its motion feature, costs more time than it saves.
LAYERS = [0]
FRAMES = 16
FRESH, FRESH_CLIPS = 4, 1600  # seed and number of the clips that the figures are of
BATCH, TRACKING_WEIGHT = 32, 8.0
WARMUP = 0.05  # of the steps of a stage
#: Peak learning rates of Muon, for the matrices of the blocks, and of AdamW, for the rest.
LRS = {"shared": (0.02, 2e-3), "plain": (0.01, 1e-3), "merged": (0.002, 2e-4)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(size: Size, seed: int = 0) -> nn.Module:
    """Return a VideoMAE with new weights."""
    torch.manual_seed(seed)
    names = dict(enumerate(MOTION_CLASSES))
    config = VideoMAEConfig(
        image_size=size.edge, patch_size=size.patch, num_frames=FRAMES, tubelet_size=2, hidden_size=WIDTH,
        num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
        id2label=names, label2id={n: i for i, n in names.items()},
    )  # fmt: skip
    return VideoMAEForVideoClassification(config)


def make_data(size: Size, clips: int) -> None:
    """Make the clips as mp4 files and store their pixels, decoded and resized as for predict, one array a split."""
    folder = make(CACHE / "motion", SynthSettings(kind="motion", clips=clips, seed=0))
    for split in ("train", "validation", "test"):
        keep(size, folder, split, split)


def keep(size: Size, folder: Path, split: str, name: str) -> None:
    """Decode one split of a folder of synthetic clips into arrays of that name."""
    labels = json.loads((folder / "labels.json").read_text())
    entries = [json.loads(line) for line in (folder / "tracks.jsonl").read_text().splitlines()]
    truth = {str(entry["id"]): entry for entry in entries}
    chosen = json.loads((folder / f"{split}.json").read_text())
    shape = (len(chosen), FRAMES, 3, size.resize, size.resize)
    pixels = np.lib.format.open_memmap(size.cache / f"{name}.npy", "w+", np.uint8, shape)
    classes, tracks = [], []
    for i, entry in enumerate(chosen):
        clip = read(folder / "videos" / f"{entry['id']}.mp4", Sampling(num_frames=FRAMES))[0]
        small = interpolate(clip.frames_TCHW, (size.resize,) * 2, mode="bilinear", antialias=True, align_corners=False)
        pixels[i] = small.numpy()
        classes.append(int(labels[truth[str(entry["id"])]["label"]]))
        tracks.append(track_targets(truth[str(entry["id"])]))
    pixels.flush()
    np.savez(size.cache / f"{name}.npz", classes=np.array(classes), tracks=np.array(tracks, np.float32))


class Split:
    """One split in memory: pixels as bytes, classes, tracks."""

    def __init__(self, size: Size, name: str) -> None:
        self.pixels = np.load(size.cache / f"{name}.npy", mmap_mode="r")[..., : size.edge, : size.edge]
        stored = np.load(size.cache / f"{name}.npz")
        self.classes, self.tracks = torch.from_numpy(stored["classes"]), torch.from_numpy(stored["tracks"])

    def __len__(self) -> int:
        return len(self.classes)

    def clips(self, indices: np.ndarray) -> Tensor:
        """Return normalised pixels [B, T, 3, H, W]."""
        pixels = torch.from_numpy(self.pixels[np.sort(indices)]).float() / 255
        return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def train_stage(model: nn.Module, size: Size, name: str, seed: int, tracking: bool, decay: bool) -> None:
    """Train one stage to its end, going on from the last checkpoint of that name, and save what it came to."""
    data, reader = Split(size, "train"), nn.Linear(WIDTH, 2 * TRACKS)
    whole = nn.ModuleList([model, reader] if tracking else [model])
    optimizers = optimizers_of(whole, LRS[name])

    def factor(step: int, steps: int) -> float:
        return min(1.0, (step + 1) / (WARMUP * steps)) * ((1 - step / steps) if decay else 1.0)

    def loss_of_step(step: int) -> Tensor:
        varied = not tracking or step >= size.as_made
        pixels, classes, tracks = _batch(data, order(seed, step, BATCH, len(data)), seed, step, varied)
        with autocast():
            if not tracking:
                return cross_entropy(model(pixels).logits.float(), classes)
            tokens_BNC = model.videomae(pixels).last_hidden_state
            logits = model.classifier(model.fc_norm(tokens_BNC.mean(1)))
            # [B T/2*S C] -> [B T/2 C] -> [B T 11]
            frames_BTC = tokens_BNC.unflatten(1, (FRAMES // 2, -1)).mean(2)
            predicted = reader(frames_BTC).unflatten(-1, (2, TRACKS)).flatten(1, 2)
        error = smooth_l1_loss(predicted.float(), tracks, beta=0.1)
        return cross_entropy(logits.float(), classes) + TRACKING_WEIGHT * error

    checkpoint = size.cache / f"{name}.pt"
    seconds = train(whole, loss_of_step, size.steps[name], optimizers, factor=factor, checkpoint=checkpoint)
    torch.save(dict(model=model.state_dict(), seconds=seconds), size.cache / f"{name}-done.pt")
    print(f"{name}: validation {accuracy(model, Split(size, 'validation'), 600).share:.4f}", flush=True)


def _batch(data: Split, indices: np.ndarray, seed: int, step: int, varied: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels, classes and tracks of a batch, all of it mirrored or reversed by chance if `varied`."""
    classes, pixels, tracks = data.classes[indices], data.clips(indices), data.tracks[indices]
    mirrored, backwards = changed_classes("motion")
    mirror, reverse = np.random.default_rng([seed, step]).integers(2, size=2) * varied
    if mirror:
        classes, pixels, tracks = mirrored[classes], pixels.flip(-1), tracks * MIRRORED_TRACKS
    if reverse:
        classes, pixels, tracks = backwards[classes], pixels.flip(1), tracks.flip(1)
    return pixels, classes, tracks


@torch.no_grad()
def accuracy(model: nn.Module, data: Split, most: int | None = None) -> Accuracy:
    """Return what the model gets right of a split, or of its first `most` clips."""
    model.eval()
    counted, count = Accuracy(), min(most or len(data), len(data))
    for start in range(0, count, 50):
        indices = np.arange(start, min(start + 50, count))
        counted += Accuracy.of(model(data.clips(indices)).logits, data.classes[indices])
    return counted


def start_of(size: Size) -> nn.Module:
    """Return the model that the shared stage starts from: new weights, or the small model's on a finer grid."""
    model, (large, small) = build(size), SIZES
    if size is large:
        weights = torch.load(small.cache / "plain-done.pt", weights_only=True)["model"]
        kernel = weights.pop("videomae.embeddings.patch_embeddings.projection.weight")
        # [C 3 2 p p] -> [C 6 p p]; a patch of fewer pixels sums up to as much
        finer = interpolate(kernel.flatten(1, 2), (size.patch,) * 2, mode="bilinear", antialias=True)
        finer = finer.unflatten(1, kernel.shape[1:3]) * (small.patch / size.patch) ** 2
        model.load_state_dict(weights | {"videomae.embeddings.patch_embeddings.projection.weight": finer})
    return model


def from_shared(size: Size) -> nn.Module:
    """Return the model that the shared stage came to."""
    model = build(size)
    model.load_state_dict(torch.load(size.cache / "shared-done.pt", weights_only=True)["model"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=["data", "shared", "plain", "merged", "report"])
    parser.add_argument("--clips", type=int, default=16000, help="synthetic clips, most of them to train on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=[size.name for size in SIZES], default="large")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    (size,) = (size for size in SIZES if size.name == options.size)
    size.cache.mkdir(parents=True, exist_ok=True)
    if "data" in options.stages:
        make_data(size, options.clips)
    if "shared" in options.stages:
        train_stage(start_of(size), size, "shared", seed=0, tracking=True, decay=False)
    for stage, folder in (("plain", "sttm-motion-plain"), ("merged", "sttm-motion")):
        if stage in options.stages:
            model = from_shared(size) if stage == "plain" else sttm.load(BUNDLE / "sttm-motion-plain")
            torch.manual_seed(1)
            if stage == "merged":
                sttm.apply(model, compute=COMPUTE, learned=True, layers=LAYERS)
                model.train()
            train_stage(model, size, stage, seed=1, tracking=False, decay=True)
            if size is SIZES[0]:
                write_model(model, folder, size.preprocess)
    if "report" in options.stages:
        report(size, options.clips)


def report(size: Size, clips: int) -> None:
    """Write the accuracy of both models on fresh clips to results/bundled/figures.json, and their cards.

    What was not trained in this cache keeps what the file says of its training.
    """
    settings = SynthSettings(kind="motion", clips=FRESH_CLIPS, seed=FRESH, train=0, validation=1, test=0)
    keep(size, make(CACHE / "fresh-clips", settings), "validation", "fresh")
    data, rows = Split(size, "fresh"), {}
    for stage, name in (("plain", "sttm-motion-plain"), ("merged", "sttm-motion")):
        model = sttm.load(BUNDLE / name)
        counted = accuracy(model, data)
        row = dict(top1=counted.share, interval=counted.interval, clips=counted.total, macs=sttm.macs(model))
        trained = size.cache / f"{stage}-done.pt"
        if trained.exists():
            seconds = round(torch.load(trained, weights_only=True)["seconds"])
            training = dict(steps=size.steps[stage], made_clips=clips, seconds=seconds)
            training["machine"] = machine(torch.device("cpu"))
        else:
            training = {key: figures_of(name)[key] for key in ("steps", "made_clips", "seconds", "machine")}
        rows[name] = row | training | dict(batch=BATCH, seed=0, tested_on_seed=FRESH)
    write_figures(rows)
    write_cards(*rows)
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

"""Trains the two small models that come with the package, on made videos of the kind *motion*.

Both start from one shared stage: a plain VideoMAE from nothing, which learns the classes and, as a help, to read off
where everything is in every frame (the tracks that made videos come with; this head is thrown away). Then its twins go
on from there, alike: one plain, one with the learned merger put in.
The figures are of clips of another seed, made after every choice. All stages go on where they stopped.

How to run, from the project's root (see results/bundled.json for the machine and the hours it took):
    python studies/bundled.py data shared plain merged report
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from arena import IN_A_MIRROR, TRACKS, changed_classes, track_targets
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, smooth_l1_loss
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

import sttm
from sttm.data.video.read import Sampling, read
from sttm.devices import machine
from sttm.evaluation.metrics import Accuracy
from sttm.synth.videos import MOTION_CLASSES, SynthSettings, make

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "cache" / "bundled"
BUNDLE = ROOT / "src" / "sttm" / "bundled"
EDGE, SIDE, FRAMES = 56, 55, 16  # resized to 56, of which 55 are five patches of 11
COMPUTE = 0.62
FRESH = 4  # seed of the clips that the figures are of
BATCH, DECAY, WARMUP, HELP = 32, 0.05, 300, 8.0
AS_MADE = 3000  # steps of the shared stage on clips as they were made; from then on mirrored and played backwards too
RATES = {"shared": 2e-3, "plain": 1e-3, "merged": 1e-3}
STEPS = {"shared": 6000, "plain": 1500, "merged": 1500}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(seed: int = 0) -> nn.Module:
    """A VideoMAE of about a million parameters for clips of 16 x 55 x 55, 8 x 5 x 5 tokens."""
    torch.manual_seed(seed)
    names = dict(enumerate(MOTION_CLASSES))
    config = VideoMAEConfig(
        image_size=SIDE, patch_size=11, num_frames=FRAMES, tubelet_size=2, hidden_size=144, num_hidden_layers=4,
        num_attention_heads=3, intermediate_size=576, id2label=names, label2id={n: i for i, n in names.items()},
    )  # fmt: skip
    model = VideoMAEForVideoClassification(config)
    # At this size the fused kernel is the slower one on a CPU, forwards and backwards.
    model.set_attn_implementation("eager")
    return model


def make_data(clips: int) -> None:
    """Makes the clips as mp4 files and keeps their pixels, decoded and resized as for predict, one array a split."""
    folder = make(CACHE / "motion", SynthSettings(kind="motion", clips=clips, seed=0))
    for split in ("train", "validation", "test"):
        keep(folder, split, split)


def keep(folder: Path, split: str, name: str) -> None:
    """Decodes one split of a folder of made clips into arrays of that name."""
    labels = json.loads((folder / "labels.json").read_text())
    entries = [json.loads(line) for line in (folder / "tracks.jsonl").read_text().splitlines()]
    truth = {str(entry["id"]): entry for entry in entries}
    chosen = json.loads((folder / f"{split}.json").read_text())
    shape = (len(chosen), FRAMES, 3, EDGE, EDGE)
    pixels = np.lib.format.open_memmap(CACHE / f"{name}.npy", "w+", np.uint8, shape)
    classes, tracks = [], []
    for i, entry in enumerate(chosen):
        clip = read(folder / "videos" / f"{entry['id']}.mp4", Sampling(num_frames=FRAMES))[0]
        small = interpolate(clip.frames_TCHW, (EDGE, EDGE), mode="bilinear", antialias=True, align_corners=False)
        pixels[i] = small.numpy()
        classes.append(int(labels[truth[str(entry["id"])]["label"]]))
        tracks.append(track_targets(truth[str(entry["id"])]))
    pixels.flush()
    np.savez(CACHE / f"{name}.npz", classes=np.array(classes), tracks=np.array(tracks, np.float32))


class Split:
    """One split in memory: pixels as bytes, classes, tracks."""

    def __init__(self, name: str) -> None:
        self.pixels = np.load(CACHE / f"{name}.npy", mmap_mode="r")
        stored = np.load(CACHE / f"{name}.npz")
        self.classes, self.tracks = torch.from_numpy(stored["classes"]), torch.from_numpy(stored["tracks"])

    def __len__(self) -> int:
        return len(self.classes)

    def clips(self, indices: np.ndarray) -> Tensor:
        """Normalised pixels [B, T, 3, H, W]."""
        pixels = torch.from_numpy(self.pixels[np.sort(indices), ..., :SIDE, :SIDE]).float() / 255
        return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def train(model: nn.Module, name: str, seed: int, helped: bool, cooling: bool) -> float:
    """Trains one stage to its end, going on from the last checkpoint of that name; gives the seconds it took."""
    mirrored, backwards = changed_classes("motion")
    data, reader = Split("train"), nn.Linear(144, 2 * TRACKS)
    parameters = [*model.parameters(), *(reader.parameters() if helped else ())]
    steps = STEPS[name]
    optimizer = torch.optim.AdamW(parameters, lr=RATES[name], weight_decay=DECAY, betas=(0.9, 0.98))
    path, step, seconds = CACHE / f"{name}.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        reader.load_state_dict(state["reader"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    model.train()
    started = time.perf_counter() - seconds
    running: list[tuple[float, float, float]] = []
    while step < steps:
        epoch, place = divmod(step * BATCH, len(data) // BATCH * BATCH)
        order = np.random.default_rng([seed, epoch]).permutation(len(data))[place : place + BATCH]
        rate = RATES[name] * min(1.0, (step + 1) / WARMUP) * ((1 - step / steps) if cooling else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        indices = np.sort(order)
        classes, pixels, tracks = data.classes[indices], data.clips(indices), data.tracks[indices]
        mirror, reverse = np.random.default_rng([seed, step]).integers(2, size=2)
        if mirror and (not helped or step >= AS_MADE):
            classes, pixels, tracks = mirrored[classes], pixels.flip(-1), tracks * IN_A_MIRROR
        if reverse and (not helped or step >= AS_MADE):
            classes, pixels, tracks = backwards[classes], pixels.flip(1), tracks.flip(1)
        with torch.autocast("cpu", torch.bfloat16):
            if helped:
                tokens_BNC = model.videomae(pixels).last_hidden_state
                logits = model.classifier(model.fc_norm(tokens_BNC.mean(1)))
                # [B T/2*S C] -> [B T/2 C] -> [B T 11]
                frames_BTC = tokens_BNC.unflatten(1, (FRAMES // 2, -1)).mean(2)
                read_off = reader(frames_BTC).unflatten(-1, (2, TRACKS)).flatten(1, 2)
                error = smooth_l1_loss(read_off.float(), tracks, beta=0.1)
            else:
                logits, error = model(pixels).logits, torch.zeros(())
            loss = cross_entropy(logits.float(), classes) + HELP * error
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        running.append((loss.item(), float((logits.argmax(-1) == classes).float().mean()), error.item()))
        if step % 100 == 0:
            seen = np.mean(running[-100:], axis=0)
            print(f"{name} {step}/{steps} loss {seen[0]:.3f} top-1 {seen[1]:.3f} tracks {seen[2]:.4f} "
                  f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
        if step % 500 == 0 or step == steps:
            state = dict(
                model=model.state_dict(), reader=reader.state_dict(), optimizer=optimizer.state_dict(),
                step=step, seconds=time.perf_counter() - started,
            )  # fmt: skip
            torch.save(state, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
            print(f"{name} {step}/{steps} validation {accuracy(model, Split('validation'), 600).share:.4f}", flush=True)
            model.train()
    return time.perf_counter() - started


@torch.no_grad()
def accuracy(model: nn.Module, data: Split, most: int | None = None) -> Accuracy:
    """What the model gets right of a split, or of its first `most` clips."""
    model.eval()
    counted, count = Accuracy(), min(most or len(data), len(data))
    for start in range(0, count, 50):
        indices = np.arange(start, min(start + 50, count))
        counted += Accuracy.of(model(data.clips(indices)).logits, data.classes[indices])
    return counted


def from_shared() -> nn.Module:
    model = build()
    model.load_state_dict(torch.load(CACHE / "shared.pt", weights_only=True)["model"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=["data", "shared", "plain", "merged", "report"])
    parser.add_argument("--clips", type=int, default=16000, help="made clips; 0.8 of them to train on")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    CACHE.mkdir(parents=True, exist_ok=True)
    if "data" in options.stages:
        make_data(options.clips)
    if "shared" in options.stages:
        train(build(), "shared", seed=0, helped=True, cooling=False)
    for stage, folder in (("plain", "sttm-motion-plain"), ("merged", "sttm-motion")):
        if stage in options.stages:
            model = from_shared()
            torch.manual_seed(1)
            if stage == "merged":
                sttm.apply(model, compute=COMPUTE, learned=True)
            train(model, stage, seed=1, helped=False, cooling=True)
            write(model.eval(), BUNDLE / folder)
    if "report" in options.stages:
        report(options)


def write(model: nn.Module, folder: Path) -> None:
    """A transformers folder with the preprocessing beside it."""
    sttm.save(model, folder)
    processor = {
        "video_processor_type": "VideoMAEVideoProcessor", "do_resize": True, "size": {"shortest_edge": EDGE},
        "resample": 2, "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD,
    }  # fmt: skip
    (folder / "video_preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def report(options: argparse.Namespace) -> None:
    """Accuracy of both twins on fresh clips, into results/bundled.json."""
    settings = SynthSettings(kind="motion", clips=1600, seed=FRESH, train=0, validation=1, test=0)
    keep(make(CACHE / "fresh-clips", settings), "validation", "fresh")
    data, rows = Split("fresh"), {}
    for stage, folder in (("plain", "sttm-motion-plain"), ("merged", "sttm-motion")):
        model = sttm.load(BUNDLE / folder)
        counted = accuracy(model, data)
        seconds = torch.load(CACHE / f"{stage}.pt", weights_only=True)["seconds"]
        rows[folder] = dict(
            top1=counted.share,
            interval=counted.interval,
            clips=counted.total,
            macs=sttm.macs(model),
            seconds=round(seconds),
        )
    results = dict(
        command="python studies/bundled.py data shared plain merged report", clips=options.clips,
        steps=STEPS, batch=BATCH, seed=0, tested_on_seed=FRESH,
        shared_seconds=round(torch.load(CACHE / "shared.pt", weights_only=True)["seconds"]),
        machine=machine(torch.device("cpu")), models=rows,
    )  # fmt: skip
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / "bundled.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

"""`sttm train`."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm.cli.app import app
from sttm.cli.options import Json, Sets
from sttm.cli.printing import complain, complain_of_videos
from sttm.cli.progress import Advance, progress


@app.command(epilog="Example:  sttm train configs/ut_interaction.yaml --set merging.compute=0.62")
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a recipe.")],
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Train a model, or resume its run. Plain or merged, on one process or, under torchrun, on many."""
    from sttm.config import load

    settings = load(config, overrides or ())  # before torch is imported: a mistake in the config is reported at once
    from sttm.training import run as training

    # no bar between lines of JSON on a terminal
    with progress("steps", shown=not (as_json and sys.stdout.isatty())) as advance:
        count = StepCount(advance)

        def report(record: Mapping[str, Any]) -> None:
            print(json.dumps(record), flush=True) if as_json else print_record(record)
            count(record)

        try:
            training.train(settings, report)
        except training.Stopped as stopped:
            saved = (
                f"saved in {stopped.checkpoint}" if stopped.checkpoint else "with nothing saved since its checkpoint"
            )
            complain(f"stopped at step {stopped.step}, {saved}; the same command resumes the run")
            raise typer.Exit(128 + stopped.signal) from stopped


class StepCount:
    """Counts the steps of a run that are still to be done, and shows the last loss."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.step = advance, 0

    def __call__(self, record: Mapping[str, Any]) -> None:
        if record.get("event") == "start":
            self.step = record["resumed_at"] or 0
            self.advance(0, record["steps"] - self.step)
        elif "loss" in record:
            self.advance(record["step"] - self.step, note=f"loss {record['loss']:.4f}")
            self.step = record["step"]


def print_record(record: Mapping[str, Any]) -> None:
    """Print one record of a run as text; missing and unreadable videos go to stderr."""
    match record.get("event"):
        case "start":
            for damaged in record["damaged"]:
                complain(f"damaged checkpoint, not used: {damaged}")
            if record["initialised"]:
                complain(f"these parts start from random weights: {', '.join(record['initialised'])}")
            print(record["plan"])
            resumed = f", resumed after step {record['resumed_at']}" if record["resumed_at"] is not None else ""
            classes = f" of {record['classes']} classes" if record["classes"] else " without labels"
            videos = f"{record['clips']:,} clips{classes}"
            print(f"{videos}, {record['steps']:,} steps{resumed}", flush=True)
            complain_of_videos(record["missing"], "missing")
        case "evaluation":
            print(f"step {record['step']:,}: top-1 on validation {record['validation_top1']:.1%}", flush=True)
        case "end":
            complain_of_videos([f"{path}: {reason}" for path, reason in record["unreadable"].items()], "unreadable")
            for split in ("validation", "test"):
                if split in record:
                    figures = record[split]
                    low, high = figures["top1_interval"]
                    clips = f"{low:.1%} to {high:.1%}, {figures['clips']:,} clips"
                    print(f"{split}: top-1 {figures['top1']:.1%} ({clips})")
            print(f"The model is in {record['folder']}/model")
        case _:
            waiting = f", {record['waiting']:.0%} of the time waiting for data" if record["waiting"] > 0.1 else ""
            rates = f"lr {record['lr']:.2e}, {record['clips_per_s']:.1f} clips/s{waiting}"
            print(f"step {record['step']:,}/{record['steps']:,}: loss {record['loss']:.4f}, {rates}", flush=True)

"""`sttm stream`: whole commands on a file, on standard input, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from sttm.synth.videos import encode
from tests.helpers import ROOT

STTM = [sys.executable, "-m", "sttm", "stream"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src")}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "v.mp4"
    encode(np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3), np.uint8), path)
    return path


def test_a_file_gives_a_line_of_json_for_each_window(sttm, video, small_model):
    outcome = sttm("stream", video, "--model", small_model, "--fps", 100, "--top-k", 2)
    assert outcome.code == 0 and not outcome.err, outcome.err
    assert len(outcome.records) == 23 and all(len(r["predictions"]) == 2 for r in outcome.records)
    joined = sttm("stream", video, "--model", small_model, "--fps", 100, "--segments").records
    assert sum(segment["windows"] for segment in joined) == 23 and joined[0]["start"] == 0


def test_without_a_model_every_line_says_what_the_bundled_one_knows(sttm, video):
    outcome = sttm("stream", video, "--stride", 100)
    assert outcome.code == 0 and "knows synthetic videos" in outcome.err
    assert all("knows synthetic videos" in record["notice"] for record in outcome.records)


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["absent.mp4"], "absent.mp4 does not exist"),
        (["98"], "there is no camera /dev/video98"),
        (["{video}", "--window", "3"], "window=3 is not possible: the model takes 8 frames"),
        (["{video}", "--fps", "0"], "fps=0 is not above 0"),
        (["{video}", "--when-late", "hurry"], "skip"),
        (["{bad}"], "is a web page"),
    ],
)
def test_mistakes_are_one_sentence(sttm, video, clips, small_model, args, part):
    filled = [arg.format(video=video, bad=clips / "b.mp4") for arg in args]
    outcome = sttm("stream", *filled, "--model", small_model)
    assert outcome.code == 2 and not outcome.out
    assert part in outcome.err and outcome.err.count("\n") == 1


def test_ctrl_c_ends_a_pipe_that_goes_on_for_ever(small_model):
    """The sender is ours: it writes MPEG-TS into the command's standard input until it is told to stop."""
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a shell in the background ignores it
    command = [*STTM, "-", "--model", str(small_model), "--timeout", "60"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed
    ) as run:
        assert run.stdin is not None and run.stdout is not None and run.stderr is not None
        with av.open(run.stdin, "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(400):
                image = np.full((48, 64, 3), number % 256, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
            run.stdin.flush()
            assert "predictions" in json.loads(run.stdout.readline())
            run.send_signal(signal.SIGINT)
            assert run.wait(60) == 130
        assert run.stderr.read() == b"sttm: interrupted\n"

"""The command line: each file reads the options of one command, calls the layers below, and prints what they return.

torch and transformers are imported inside the commands, so that `sttm --help` answers at once.
"""

# `sttm --help` lists the commands in this order.
# isort: off
from sttm.cli import (
    demo,
    predict,
    stream,
    show,
    batch,
    train,
    configs,
    eval,
    calibrate,
    distill,
    bench,
    export,
    serve,
    synth,
    models,
    data_check,
    doctor,
)

# isort: on
from sttm.cli.app import main

__all__ = [
    "batch",
    "bench",
    "calibrate",
    "configs",
    "data_check",
    "demo",
    "distill",
    "doctor",
    "eval",
    "export",
    "main",
    "models",
    "predict",
    "serve",
    "show",
    "stream",
    "synth",
    "train",
]

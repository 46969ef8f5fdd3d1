"""The command line: each command reads its options, calls one engine, and prints what came back.

torch and transformers are imported inside the commands, so that `sttm --help` answers at once.
"""

from sttm.cli import commands, training
from sttm.cli.app import main

__all__ = ["commands", "main", "training"]

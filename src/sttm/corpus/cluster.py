"""Ray for the time of one run: on this machine by default, without network, telemetry, dashboard or log noise."""

from __future__ import annotations

import io
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sttm.errors import SttmError, first_line

#: Must be set before Ray is imported; Ray's processes inherit them.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that is late would start Ray again after its end
}
#: Bytes of one block between two stages: small, so that rows come soon and little memory waits.
BLOCK = 2**25
_PREFIX = "sttm-ray-"
#: Bytes that the path of a socket may have (macOS allows fewer than Linux), and those of what Ray adds to its folder.
_SOCKET = 103
_ADDED = len("/session_2026-01-31_23-59-59_999999_1234567/sockets/plasma_store")


@dataclass(frozen=True)
class Pools:
    """How many actors decode, how many answer, and what each of these has."""

    decoders: int
    models: int
    cpus: int
    """Cores of one model."""
    gpus: int
    """Of one model: 1 or 0."""


@contextmanager
def running(address: str | None, memory_gib: float) -> Iterator[Any]:
    """Yield ray, connected to the cluster at an address, or to one on this machine that ends with the block.

    Raises:
        SttmError: if Ray is not installed, does not start, or there is no cluster at the address.
    """
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise SttmError("sttm batch runs on Ray Data, which is not installed: pip install 'sttm[batch]'")
    os.environ.update(_ENVIRONMENT)
    if address is None and "ray" not in sys.modules:
        # It listens on all of the machine's addresses, so it asks for a token that only its own processes have.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.environ.get("RAY_AUTH_TOKEN", secrets.token_hex(32)))
    import ray
    import ray.data

    _remove_left_overs()
    place = _folder()
    local = dict(
        address="local", num_cpus=_cores(), object_store_memory=int(memory_gib * 2**30), include_dashboard=False,
        _temp_dir=place,
    )  # fmt: skip
    options: dict[str, Any] = {"address": address} if address else local
    handler = signal.getsignal(signal.SIGTERM)
    try:
        # Ray prints on stdout that an actor has died; nothing of ours is printed meanwhile.
        with _stderr_of_c_to(Path(place) / "stderr.log"), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", category=DeprecationWarning, module=r"ray\."
            )  # Ray's use of its own parts
            _start(ray, address, options)
            _quiet(ray)
            yield ray
            ray.shutdown()
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():  # Ray has put in one of its own
            signal.signal(signal.SIGTERM, handler)
        shutil.rmtree(place, ignore_errors=True)


def pools(ray: Any, decoders: int | None, models: int | None, device: str) -> Pools:
    """Return the pools for a cluster: one model a GPU, or one on half of the cores, and decoders on the others.

    Raises:
        SttmError: for more than the cluster has, which would wait for ever.
    """
    there = ray.cluster_resources()
    cores, cards = int(there.get("CPU", 1)), int(there.get("GPU", 0)) if device == "cuda" else 0
    if device == "cuda" and not cards:
        raise SttmError("--device cuda, but Ray sees no GPU; use --device cpu, or see sttm doctor")
    models = models or (cards or 1)
    decoders = decoders or max(1, cores - models if cards else cores // 2)
    cpus = 1 if cards else (cores - decoders) // models
    if cpus < 1 or decoders + models > cores or (cards and models > cards):
        wanted = f"{decoders} decoders and {models} models"
        has = f"{cores} cores and {cards} GPUs"
        raise SttmError(f"{wanted} need more than the {has} that Ray has; give fewer --decoders or --models")
    return Pools(decoders, models, cpus, min(cards, 1))


def cause_of(error: BaseException) -> SttmError | None:
    """Return the SttmError that an actor raised, if that is what Ray's error is about."""
    seen: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        found = waiting.pop()
        if not isinstance(found, BaseException) or found in seen:
            continue
        seen.append(found)
        if isinstance(found, SttmError):
            return SttmError(str(found.args[0]) if found.args else str(found))
        waiting += [found.__cause__, found.__context__, getattr(found, "cause", None)]
    return None


def _start(ray: Any, address: str | None, options: dict[str, Any]) -> None:
    """Start Ray or connect to it; raise SttmError for whatever keeps it from that."""
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # Ray has no class of its own for a node that does not start in its 30 s
        where = f"there is no Ray cluster at {address}" if address else "Ray does not start on this machine"
        advice = "check the address" if address else "it needs memory in /dev/shm, and a machine that is not too busy"
        raise SttmError(f"{where} ({first_line(error)[:200]}); {advice}, then run the same command again") from error


def _quiet(ray: Any) -> None:
    """Keep Ray Data from the terminal: what it logs is in the session's folder."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
        for handler in [h for h in logger.handlers if type(h).__name__ in ("StreamHandler", "PlainRayHandler")]:
            logger.removeHandler(handler)


def _folder() -> str:
    """Make the folder of Ray's sockets and logs; not in TMPDIR where its sockets would have longer paths than can be.

    Raises:
        SttmError: if there is no such folder that can be written to.
    """
    name = f"{_PREFIX}{os.getpid()}-"
    longest = _SOCKET - _ADDED - len(f"/{name}12345678")
    short = [folder for folder in _temporary() if len(os.fsencode(folder)) <= longest]
    for folder in short:
        with suppress(OSError):
            return tempfile.mkdtemp(prefix=name, dir=folder)
    where = " or ".join(short) or f"a folder for temporary files whose path has at most {longest} bytes"
    raise SttmError(f"Ray cannot write to {where}; free some space there, or set TMPDIR to another short path")


def _temporary() -> list[str]:
    """Return the folders for temporary files: TMPDIR or what stands for it, and the system's own."""
    return list(dict.fromkeys([tempfile.gettempdir(), "/tmp"]))


def _remove_left_overs() -> None:
    """Remove the folders of runs whose process was killed."""
    for folder in (found for place in _temporary() for found in Path(place).glob(f"{_PREFIX}*-*")):
        number = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if number.isdecimal() and not Path("/proc", number).exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _stderr_of_c_to(path: Path) -> Iterator[None]:
    """Send to a file what Ray's C++ writes to descriptor 2; Python's own stderr stays where it is."""
    own, kept = sys.stderr, os.dup(2)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 2)
        if _descriptor(own) == 2:
            sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1, encoding=own.encoding, errors="backslashreplace")
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        if sys.stderr is not own:
            sys.stderr.close()
            sys.stderr = own


def _descriptor(file: Any) -> int | None:
    try:
        return int(file.fileno())
    except (AttributeError, OSError, ValueError):
        return None


def _cores() -> int:
    """Return the cores that this process may use, at least the two that two stages need."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return max(2, len(affinity(0)) if affinity else os.cpu_count() or 1)

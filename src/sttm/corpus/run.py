"""One run over a corpus: number the videos, cut them into parts, run the parts that are not finished.

A part is written when all of its groups have come, in their order, whatever the order in which they came and however
often: Ray repeats what an actor that died had not handed on. So every video has one row in the end.
"""

from __future__ import annotations

import time
from _thread import interrupt_main
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Timer
from typing import Any

from sttm import models
from sttm.config import parse_views
from sttm.corpus import inputs
from sttm.corpus.cluster import Pools, cause_of, pools, running
from sttm.corpus.features import check
from sttm.corpus.manifest import Features, Settings, Store, model_sha256, versions, writing
from sttm.corpus.stages import Answer, Decode, check_sizes, group_size, groups_of
from sttm.corpus.tables import unpacked
from sttm.data.isolated import Limits
from sttm.devices import device_of
from sttm.errors import SttmError, first_line
from sttm.lock import FILE as LOCK
from sttm.lock import locked

#: Blocks of groups that Ray gets at most, as it keeps a record of each.
BLOCKS = 4096
#: Seconds without any result, beyond what reading one group may take, after which something must be wrong.
PATIENCE = 1800.0


@dataclass(frozen=True)
class Request:
    """What `sttm batch` was asked for."""

    source: Path
    output: Path
    root: Path | None = None
    format: str = "auto"
    column: str | None = None
    model: str = models.DEFAULT
    compute: float | None = None
    method: str = "sttm"
    features: Features = "none"
    views: str = "1x1"
    top_k: int = 5
    batch_size: int = 8
    part: int = 1024
    device: str = "auto"
    dtype: str = "fp32"
    address: str | None = None
    decoders: int | None = None
    models: int | None = None
    memory_gib: float = 1.0
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Outcome:
    """What a run over a corpus ended with."""

    manifest: dict[str, Any]
    videos: int
    """Of this session, those before it left out."""
    seconds: float

    @property
    def errors(self) -> int:
        """Rows with an error, of all sessions."""
        return int(self.manifest["errors"])


def run(
    request: Request,
    *,
    begun: Callable[[int, int], None] = lambda done, total: None,
    advance: Callable[[int, int], None] = lambda videos, errors: None,
) -> Outcome:
    """Make one row of every video of a corpus, or go on where an earlier run stopped.

    Args:
        begun: called once with how many videos are finished already, and how many there are.
        advance: called with each further group of rows, and how many of these have an error.

    Raises:
        SttmError: for a corpus, model or option that cannot be, an output folder that another run uses or that was
            begun with other settings, or if Ray fails. What is finished stays.
    """
    check_sizes(request.part, request.batch_size, parse_views(request.views))
    _make_folder(request.output)
    with locked(request.output, "is writing to", "choose another OUTPUT"):
        store = Store(request.output)
        _refuse_other_files(store)
        videos = inputs.find(request.source, request.root, request.format, request.column)
        settings = _settings(request, videos)
        if not store.begun:
            with writing(store.folder):
                inputs.write(videos, store.folder, settings.part)
        del videos
        store.begin(settings)
        return _session(request, settings, store, begun, advance)


def _session(
    request: Request,
    settings: Settings,
    store: Store,
    begun: Callable[[int, int], None],
    advance: Callable[[int, int], None],
) -> Outcome:
    """Run what is not finished, and say in the manifest what was done, however it ends."""
    started, done = time.perf_counter(), sum(line["rows"] for line in store.parts.values())
    parts = -(-settings.videos // settings.part)
    missing = [number for number in range(parts) if number not in store.parts]
    session: dict[str, Any] = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions()}
    begun(done, settings.videos)
    try:
        if missing:
            with running(request.address, request.memory_gib) as ray:
                found = pools(ray, request.decoders, request.models, settings.device)
                session["pools"] = vars(found)
                with closing(_results(ray, missing, settings, request, found)) as results:
                    _fill(results, missing, settings, store, advance)
    finally:
        seconds = time.perf_counter() - started
        made = sum(line["rows"] for line in store.parts.values()) - done
        session |= {"videos": made, "seconds": round(seconds, 3)}
        manifest = store.close(session, finished=len(store.parts) == parts)
    return Outcome(manifest, made, seconds)


def _fill(
    results: Iterator[dict[str, Any]],
    missing: list[int],
    settings: Settings,
    store: Store,
    advance: Callable[[int, int], None],
) -> None:
    """Write each part when its last group has come."""
    import pyarrow

    part_of = {group: part for part in missing for group in groups_of(part, settings)}
    come: dict[int, dict[int, Any]] = {}
    for result in results:
        group = int(result["group"])
        part = part_of[group]
        tables = come.setdefault(part, {})
        if part in store.parts or group in tables:  # Ray ran it twice
            continue
        tables[group] = unpacked(result["table"])
        advance(len(tables[group]), len(tables[group]) - tables[group]["error"].null_count)
        wanted = groups_of(part, settings)
        if len(tables) == len(wanted):
            store.write_part(part, pyarrow.concat_tables([tables[number] for number in wanted]))
            del come[part]
    left = [part for part in missing if part not in store.parts]
    if left:
        raise SttmError(f"Ray ended before {len(left)} parts were complete; run the same command again to go on")


def _results(ray: Any, missing: list[int], settings: Settings, request: Request, pools: Pools) -> Generator[Any]:
    """Yield what the actors make of every group of the missing parts, in whatever order they end."""
    rows = [{"group": group} for part in missing for group in groups_of(part, settings)]
    size = ray.data.ActorPoolStrategy
    decode = dict(fn_constructor_args=(str(request.output), settings, request.limits.seconds, request.limits.gib))
    answer = dict(fn_constructor_args=(settings, None if pools.gpus else pools.cpus))
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS))
    data = data.map(Decode, **decode, compute=size(size=pools.decoders), num_cpus=1)
    cores: dict[str, Any] = {"num_cpus": pools.cpus, "num_gpus": pools.gpus}
    data = data.map(Answer, **answer, compute=size(size=pools.models), **cores)
    try:
        with closing(iter(data.iter_rows())) as rows_of_ray:  # closing it ends Ray's own threads
            yield from _watched(rows_of_ray, PATIENCE + group_size(settings) * request.limits.seconds)
    except SttmError:
        raise
    except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
        found = cause_of(error)
        again = "; run the same command again to go on where it stopped"
        raise found or SttmError(f"Ray gave up ({first_line(error)[:200]}){again}") from error


def _watched(results: Iterator[Any], patience: float) -> Iterator[Any]:
    """Yield what comes; raise SttmError if nothing does for `patience` seconds, as when an actor dies ever again."""
    stalled = Event()

    def interrupt() -> None:
        stalled.set()
        interrupt_main()

    try:
        while True:
            timer = Timer(patience, interrupt)
            timer.daemon = True
            timer.start()
            try:
                result = next(results)
            except StopIteration:
                return
            finally:
                timer.cancel()
            yield result
    except KeyboardInterrupt:
        if stalled.is_set():
            raise SttmError(
                f"nothing came from Ray for {patience:.0f} s; run the same command again to go on"
            ) from None
        raise


def _settings(request: Request, videos: list[Any]) -> Settings:
    """Return what decides the rows; the model is loaded once here, so that what it cannot do is said at once."""
    network = models.load(request.model)
    models.bring_to_compute(network, request.compute, request.method)
    check(network, request.features, parse_views(request.views))
    return Settings(
        model=request.model, model_sha256=model_sha256(models.resolve(request.model)), compute=request.compute,
        method=request.method, features=request.features, views=request.views, top_k=request.top_k,
        batch_size=request.batch_size, part=request.part, device=device_of(request.device).type, dtype=request.dtype,
        videos=len(videos), inputs_sha256=inputs.digest(videos),
    )  # fmt: skip


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SttmError(f"cannot write to OUTPUT={folder}: {error.strerror}; choose another folder") from error


def _refuse_other_files(store: Store) -> None:
    """Raise SttmError for a folder that holds files of something else."""
    if not store.begun:
        own = (LOCK, inputs.FILE, "parts")
        other = [path.name for path in store.folder.iterdir() if path.name not in own and not path.name.startswith(".")]
        if other:
            raise SttmError(f"{store.folder} holds other files, such as {sorted(other)[0]}; give OUTPUT a new folder")

"""Records of `predict` in one file, jsonl, csv or parquet: written whole or not at all."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sttm.errors import SttmError, unknown

SUFFIXES = (".jsonl", ".csv", ".parquet")
#: Rows that a parquet file gets at once.
ROWS = 1024

Record = dict[str, Any]


@contextmanager
def output(path: Path, top_k: int) -> Iterator[Callable[[Record], None]]:
    """Yield what writes a record; the file appears when all is written, and stays as it was if anything is raised.

    A line of jsonl is the record. csv and parquet have a row for each record: path, prediction_1, score_1 and so on up
    to `top_k`, compute, frames_decoded, seconds, warnings, error.

    Raises:
        SttmError: for another suffix, a folder that cannot be written, or parquet without pyarrow.
    """
    if path.suffix not in SUFFIXES:
        raise unknown("suffix of --output", path.suffix or path.name, SUFFIXES)
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise SttmError("writing parquet needs pyarrow: pip install pyarrow, or give --output a name in .jsonl or .csv")
    if path.is_dir():
        raise SttmError(f"--output={path} is a folder; give the name of a file in it")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.touch()
    except OSError as error:
        raise SttmError(f"cannot write --output={path}: {error.strerror}; choose another folder") from error
    try:
        with _WRITERS[path.suffix](part, top_k) as write:
            yield write
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def row_of(record: Record, top_k: int) -> Record:
    """Return a record as a row with one value in each column."""
    row: Record = {"path": record["path"]}
    best = record.get("predictions", [])
    for rank in range(top_k):
        known = rank < len(best)
        row[f"prediction_{rank + 1}"] = best[rank]["label"] if known else None
        row[f"score_{rank + 1}"] = best[rank]["score"] if known else None
    remarks = [*record.get("warnings", ()), *filter(None, [record.get("notice")])]
    row |= {name: record.get(name) for name in ("compute", "frames_decoded", "seconds")}
    return row | {"warnings": "; ".join(remarks) or None, "error": record.get("error")}


def arrow_schema(top_k: int) -> Any:
    """Return the columns of `row_of` and their types, as a schema of pyarrow."""
    import pyarrow

    types = {"compute": pyarrow.float64(), "frames_decoded": pyarrow.int64(), "seconds": pyarrow.float64()}
    types |= {f"score_{rank + 1}": pyarrow.float64() for rank in range(top_k)}
    return pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in row_of({"path": ""}, top_k)])


def arrow_row(record: Record, top_k: int) -> Record:
    """Return the row of a record with texts that parquet can hold, which are valid UTF-8 only."""
    row = row_of(record, top_k)
    return {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in row.items()}


@contextmanager
def _jsonl(path: Path, top_k: int) -> Iterator[Callable[[Record], None]]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda record: print(json.dumps(record), file=file)


@contextmanager
def _csv(path: Path, top_k: int) -> Iterator[Callable[[Record], None]]:
    # File names may hold bytes that are no text: they are written unchanged.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.DictWriter(file, list(row_of({"path": ""}, top_k)), lineterminator="\n")
        table.writeheader()
        yield lambda record: table.writerow(row_of(record, top_k))


@contextmanager
def _parquet(path: Path, top_k: int) -> Iterator[Callable[[Record], None]]:
    import pyarrow
    import pyarrow.parquet

    schema = arrow_schema(top_k)
    rows: list[Record] = []

    def flush() -> None:
        table.write_table(pyarrow.Table.from_pylist(rows, schema))
        rows.clear()

    def write(record: Record) -> None:
        rows.append(arrow_row(record, top_k))
        if len(rows) == ROWS:
            flush()

    with pyarrow.parquet.ParquetWriter(path, schema) as table:
        yield write
        flush()


_WRITERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}

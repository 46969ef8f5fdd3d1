"""The rows of a group as a table of pyarrow, and tables as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sttm.corpus.features import names_of
from sttm.corpus.manifest import Features, Settings
from sttm.evaluation.output import arrow_row, arrow_schema


def schema_of(top_k: int, features: Features) -> Any:
    """Return the columns of a part: the number of the video, those of `predict --output`, and the features."""
    import pyarrow as pa

    vector, vectors = pa.list_(pa.float32()), pa.list_(pa.list_(pa.float16()))
    types = {"pooled": vector, "slots": vectors, "slot_sizes": vector, "slot_paths": vectors}
    fields = [pa.field("number", pa.int64()), *arrow_schema(top_k)]
    return pa.schema([*fields, *(pa.field(name, types[name]) for name in names_of(features))])


def table_of(
    numbers: Sequence[int],
    records: Sequence[dict[str, Any]],
    features: Mapping[str, Sequence[np.ndarray]],
    went: Sequence[bool],
    settings: Settings,
) -> Any:
    """Return the rows of some videos.

    Args:
        features: a value for each video that went through the model, in order; a row with an error has none.
        went: which did.
    """
    import pyarrow as pa

    schema = schema_of(settings.top_k, settings.features)
    rows: list[dict[str, Any]] = [
        {"number": n} | arrow_row(record, settings.top_k) for n, record in zip(numbers, records, strict=True)
    ]
    places = np.cumsum(went) - 1
    for name, values in features.items():
        for row, place, through in zip(rows, places, went, strict=True):
            row[name] = list(values[place]) if through and row["error"] is None else None
    return pa.Table.from_pylist(rows, schema)


def packed(table: Any) -> bytes:
    """Return a table as bytes."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def unpacked(data: bytes) -> Any:
    """Return the table that `packed` made bytes of."""
    import pyarrow as pa

    with pa.ipc.open_stream(data) as stream:
        return stream.read_all()

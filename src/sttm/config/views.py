"""Views of multi-view evaluation, as they are written in configs and on the command line."""

from __future__ import annotations

from sttm.errors import SttmError


def parse_views(text: str) -> tuple[int, int]:
    """Return (5, 3) for "5x3": five temporal views times three spatial crops; raise SttmError for any other text."""
    temporal, _, spatial = text.partition("x")
    if not temporal.isdecimal() or int(temporal) < 1 or spatial not in ("1", "3"):
        raise SttmError(f"views={text} is not TxS; give 1 or more in time and 1 or 3 in space, such as 5x3")
    return int(temporal), int(spatial)

"""Fine-tune: every method in from the first step, from a backbone pre-trained once a seed on other clips.

The backbone has learned to track what moves in synthetic videos of its own (see harness/pretraining.py).

How to run, from the project's root, with the data in STTM_DATA or ../shared/data (what is done is not done again):
    python studies/finetune.py run --dataset grid_words_lips,avletters --methods plain,sttm,tome --compute 0.35
    python studies/finetune.py table
"""

from __future__ import annotations

from typing import Any

from harness.pretraining import from_backbone
from harness.protocols import Protocol, main
from harness.training import Shape


def start(seed: int, classes: int, shape: Shape) -> Any:
    """Return the backbone of a seed with a new head."""
    return from_backbone(seed, shape, classes)


PROTOCOL = Protocol("finetune", __doc__, start)

if __name__ == "__main__":
    main(PROTOCOL)

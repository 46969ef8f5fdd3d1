"""From scratch: every method in from the first step of a model with new weights, by one recipe, plain beside.

How to run, from the project's root, with the data in STTM_DATA or ../shared/data (what is done is not done again):
    python studies/scratch.py run --dataset grid_words_lips --methods plain,sttm --compute 0.62,0.35 --seeds 0,1,2
    python studies/scratch.py run --dataset grid_words_lips --methods sttm --compute 0.35 --epochs 48 --optimizer adamw
    python studies/scratch.py table
    python studies/scratch.py config --dataset grid_words_lips --methods sttm --compute 0.35 --seeds 0 > words.yaml
"""

from __future__ import annotations

from harness.protocols import Protocol, from_scratch, main

PROTOCOL = Protocol("scratch", __doc__, from_scratch)

if __name__ == "__main__":
    main(PROTOCOL)

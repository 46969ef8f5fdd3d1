"""What every test shares: one thread, no network, the same draws by hypothesis, the real clips."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports torch or transformers, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Colours and line widths of the terminal that runs the tests must not reach their output.
os.environ.update(NO_COLOR="1", TERM="dumb", COLUMNS="120")
os.environ.pop("FORCE_COLOR", None)

# No deadline: a slow moment of the machine is no failure. Derandomized: a red test is red for everybody.
settings.register_profile("sttm", deadline=None, derandomize=True)
settings.load_profile("sttm")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips that lies beside the repository, or at STTM_DATA."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("STTM_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared clips at {folder}; STTM_DATA names another place")
    return folder

"""The schedule of one checkpoint, fitted to a few clips without labels."""

from sttm.calibration.agreement import Agreement, distances
from sttm.calibration.run import calibrate, calibration
from sttm.calibration.search import Calibration

__all__ = ["Agreement", "Calibration", "calibrate", "calibration", "distances"]

"""What a training run can be told, and where it is read."""

from sttm.config.reading import dump, load
from sttm.config.settings import Settings, parse_views

__all__ = ["Settings", "dump", "load", "parse_views"]

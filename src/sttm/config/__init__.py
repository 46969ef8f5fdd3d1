"""The settings of a training run, and reading them."""

from sttm.config.reading import dump, load
from sttm.config.settings import Settings
from sttm.config.views import parse_views

__all__ = ["Settings", "dump", "load", "parse_views"]

"""transformers' common tests as test cases of one family, plain or merged, and what came of each test."""

from __future__ import annotations

import contextlib
import io
import json
import unittest
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoModelForVideoClassification
from transformers.utils import logging

import sttm
from tests import helpers
from tests.helpers import pixels

#: Small models: two layers, as transformers' own testers have; and the tokens of a clip.
FAMILIES: dict[str, tuple[Callable[..., Any], int]] = {
    "videomae": (helpers.videomae, 64),
    "vivit": (helpers.vivit, 65),
    "timesformer": (helpers.timesformer, 129),
    "vjepa2": (helpers.vjepa2, 64),
}


class Tester:
    """What transformers' tests ask about a model: its config, a batch, and its sizes."""

    is_training = True
    batch_size, num_hidden_layers, num_attention_heads, hidden_size = 2, 2, 4, 48

    def __init__(self, family: str) -> None:
        self.build, self.seq_length = FAMILIES[family]

    def model(self) -> Any:
        return self.build(num_hidden_layers=self.num_hidden_layers)

    def get_config(self) -> Any:
        return self.model().config

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        model = self.model()
        return model.config, {model.main_input_name: pixels(model, self.batch_size)}


def merged_class(plain: Any, compute: float) -> Any:
    """Return a class of the same name whose models are merged as soon as they are made or read."""

    class Merged(plain):
        def __init__(self, config: Any, *args: Any, **options: Any) -> None:
            super().__init__(config, *args, **options)
            sttm.apply(self, compute=compute)

        @classmethod
        def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
            folder = pretrained_model_name_or_path
            file = Path(folder or ".") / "config.json"
            if file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("model_type") == "sttm":
                return AutoModelForVideoClassification.from_pretrained(folder, *args, **options)
            read = plain.from_pretrained(folder, *args, **options)
            sttm.apply(read[0] if isinstance(read, tuple) else read, compute=compute)
            return read

    Merged.__name__, Merged.__qualname__, Merged.__module__ = plain.__name__, plain.__qualname__, plain.__module__
    return Merged


def case(mixin: Any, family: str, compute: float | None) -> type[unittest.TestCase]:
    """Return the test case of one family: plain where compute is None."""
    plain = type(Tester(family).model())
    members = {
        "all_model_classes": (plain if compute is None else merged_class(plain, compute),),
        "test_resize_embeddings": False,
        "setUp": lambda self: setattr(self, "model_tester", Tester(family)),
    }
    return type(f"{plain.__name__}Test", (mixin, unittest.TestCase), members)


class _Outcomes(unittest.TestResult):
    """By test: passed, skipped, or the last line of what it raised."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    @staticmethod
    def _name(test: Any) -> str:
        return getattr(test, "test_case", test)._testMethodName  # of a part of a test, that of the whole

    def addSuccess(self, test: Any) -> None:  # noqa: N802 (unittest's name)
        self.found[self._name(test)] = "passed"

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        self.found[self._name(test)] = "skipped"

    def addError(self, test: Any, error: Any) -> None:  # noqa: N802
        skipped = error[0].__name__ == "Skipped"  # pytest's, which some of the tests raise
        lines = f"{error[0].__name__}: {error[1]}".strip().splitlines()
        self.found[self._name(test)] = "skipped" if skipped else lines[0][:160]

    def addFailure(self, test: Any, error: Any) -> None:  # noqa: N802
        self.addError(test, error)

    def addSubTest(self, test: Any, subtest: Any, error: Any) -> None:  # noqa: N802
        if error is not None:
            self.addError(test, error)


def outcomes(tests: type[unittest.TestCase]) -> dict[str, str]:
    """Run all tests of a case, in silence, and return what came of each."""
    logging.disable_default_handler()  # the reports of what was loaded; tests that read the log have their own handler
    logging.disable_progress_bar()
    result = _Outcomes()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        unittest.defaultTestLoader.loadTestsFromTestCase(tests).run(result)
    return result.found

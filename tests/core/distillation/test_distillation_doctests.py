"""The examples in the docstrings are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["annotator", "calibration", "features", "scores"])
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"mralign_core.distillation.{name}"))
    assert results.attempted and not results.failed

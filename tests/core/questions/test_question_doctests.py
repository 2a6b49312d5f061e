"""The examples in the docstrings are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["files", "jsonl", "overlap"])
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"mralign_core.questions.{name}"))
    assert results.attempted and not results.failed

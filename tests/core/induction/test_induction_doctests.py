"""The examples in the docstrings are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["clustering", "embedding", "lexical", "naming", "replies"])
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"mralign_core.induction.{name}"))
    assert results.attempted and not results.failed

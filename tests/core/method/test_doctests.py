"""The numbers worked by hand in the docstrings are right, and no public function is without an example."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

from mralign_core import method

MODULES = [module.name for module in pkgutil.iter_modules(method.__path__, f"{method.__name__}.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_have_an_example(name):
    module = importlib.import_module(name)
    functions = [
        function
        for function_name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == name and not function_name.startswith("_")
    ]
    assert [function.__name__ for function in functions if ">>>" not in (function.__doc__ or "")] == []

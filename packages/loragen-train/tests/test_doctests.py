"""The examples in the docstrings are true."""

import doctest
import importlib
import pkgutil

import loragen_train
import pytest

MODULES = [module.name for module in pkgutil.iter_modules(loragen_train.__path__, "loragen_train.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) >= 2

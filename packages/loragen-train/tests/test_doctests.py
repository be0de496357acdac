"""The examples in the docstrings are true."""

import doctest
import importlib
import pkgutil

import loragen_train
import pytest

FOUND = pkgutil.walk_packages(loragen_train.__path__, "loragen_train.")
MODULES = [module.name for module in FOUND if not module.name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) >= 2

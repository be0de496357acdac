"""The examples in the docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import lora_tokenizer
import pytest

FOUND = pkgutil.walk_packages(lora_tokenizer.__path__, "lora_tokenizer.")
MODULES = [info.name for info in FOUND if not info.name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0

"""What the documentation shows runs as shown, and what it promises about sizes is so."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import hyperconv
import pytest
import torch
from hyperconv import GeneratorConfig, HyperConvGenerator

README = (Path(__file__).parents[1] / "README.md").read_text()
MODULES = ["hyperconv", *(module.name for module in pkgutil.walk_packages(hyperconv.__path__, "hyperconv."))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings(name):
    torch.manual_seed(0)
    module = importlib.import_module(name)
    assert (
        doctest.testmod(
            module, extraglobs={"torch": torch, **{n: getattr(hyperconv, n) for n in hyperconv.__all__}}
        ).failed
        == 0
    )
    assert sorted(getattr(module, "__all__", ["missing"])) == module.__all__


def test_the_blocks_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    scope = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)


def test_a_config_is_made_without_torch():
    code = "import hyperconv, sys; hyperconv.GeneratorConfig(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tenth_of_the_published_decoder_for_the_same_output():
    generator = HyperConvGenerator(GeneratorConfig(grid=(24, 483)), device="meta")
    assert generator.config.max_seq_len * generator.config.output_dim > 4.4e6
    assert generator.num_parameters() < 1.11e9 / 10
    assert generator.flops() < 8.3e12 / 10

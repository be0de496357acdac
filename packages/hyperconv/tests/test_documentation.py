"""What the documentation shows runs as shown, and what it promises about sizes is so."""

import dataclasses
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
from hyperconv import GeneratorConfig, HyperConvGenerator, num_basis_for

README = Path(__file__).parents[1] / "README.md"
PAGE = Path(__file__).parents[3] / "docs/network.md"
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


def test_the_blocks_of_the_readme_and_of_the_page_that_includes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = [
        (path.name, block)
        for path in (README, PAGE)
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    ]
    assert len(blocks) >= 5
    scope = {}
    for name, block in blocks:
        exec(compile(block, name, "exec"), scope)


def test_a_config_is_made_without_torch():
    code = "import hyperconv, sys; hyperconv.GeneratorConfig(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tenth_of_the_published_decoder_for_the_same_output():
    generator = HyperConvGenerator(GeneratorConfig(grid=(24, 483)), device="meta")
    assert generator.config.max_seq_len * generator.config.output_dim > 4.4e6
    assert generator.num_parameters() < 1.11e9 / 10
    assert generator.flops() < 8.3e12 / 10


SCALES = [
    ((30, 40), 192, 42, 41, 11_700_000),  # r 4, q and v of a 135 M model
    ((32, 104), 1024, 479, 43, 155_000_000),  # r 8, q and v of an 8 B model
]


@pytest.mark.parametrize(("grid", "output_dim", "num_tasks", "num_basis", "most"), SCALES)
def test_hundreds_of_tasks_of_a_large_model_stay_below_200_million_parameters(
    grid, output_dim, num_tasks, num_basis, most
):
    assert num_basis_for(num_tasks, grid[0] * grid[1] * output_dim) == num_basis
    config = GeneratorConfig(grid=grid, output_dim=output_dim, num_basis=num_basis)
    for block in ("sequential", "dual"):
        generator = HyperConvGenerator(dataclasses.replace(config, block=block), device="meta")
        assert generator.num_parameters() < (most if block == "sequential" else 200_000_000)
        assert generator.flops() < 50e9

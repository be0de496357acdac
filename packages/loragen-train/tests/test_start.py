"""Where a generator starts: as the ridge regression that evaluate shows, with as many patterns as there are tasks."""

import math
from dataclasses import replace

import pytest
import torch
from hyperconv import GeneratorConfig
from loragen_infer import GeneratorBundle
from loragen_infer.evaluation import read_task_means
from loragen_infer.evaluation.baselines import Ridge
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, FitConfig, ModelConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.experiments.folder import FINAL_MODEL
from loragen_train.training.build import build_setup
from loragen_train.training.results import write_results

TASKS = ("sums", "spelling", "capitals", "more", "last")


@pytest.fixture(scope="module")
def config(tmp_path_factory, make) -> FitConfig:
    root = tmp_path_factory.mktemp("start")
    make.manifest(root / "zoo", TASKS)
    return FitConfig(
        data=DataConfig(zoo=str(root / "zoo"), cache_dir=str(root / "cache"), prompts_per_condition=5),
        model=ModelConfig(hidden_dim=16, output_dim=16, num_hyperconv_blocks=1),
        training=TrainingConfig(accelerator="cpu"),
    )


def test_before_the_first_step_it_is_the_ridge_row_of_evaluate(config, tmp_path):
    setup = build_setup(config, tmp_path / "cache")
    write_results(setup, config, tmp_path, weights=None, device=torch.device("cpu"))
    bundle = GeneratorBundle.load(tmp_path / FINAL_MODEL)
    means = read_task_means(tmp_path / FINAL_MODEL / "generator.safetensors")
    ridge = Ridge(means)
    for text in (["What is 3 + 4?"] * 5, ["Spell it backward.", "Name a capital.", "a", "b", "c"], ["junk"] * 5):
        condition_PD = setup.encoder.encode(text)
        with torch.no_grad():
            generated = bundle.stats.denormalize(bundle.generator(condition_PD[None])[0])
        expected = ridge.tokens(condition_PD.mean(dim=0), among=range(len(TASKS)), num_prompts=5)
        torch.testing.assert_close(generated, expected, atol=1e-5, rtol=1e-5)
    # It knows one task from another.
    assert (means.token_means[0] - means.token_means[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, len(TASKS) - 1),
        ({"num_basis": 3}, 3),
        ({"num_basis": 16}, 16),
        ({"generator": GeneratorConfig(num_basis=7)}, 7),
        ({"generator": GeneratorConfig(expander="basis")}, len(TASKS) - 1),
    ],
)
def test_the_number_of_patterns_grows_with_the_tasks_or_is_the_one_given(config, tmp_path, model, expected):
    setup = build_setup(replace(config, model=replace(config.model, **model)), tmp_path)
    assert setup.module.generator.config.num_basis == expected


def test_corrections_are_as_many_as_tasks_bear_and_memory_holds():
    small, large = (30, 20, 384), (32, 832, 128)
    for num_prompted, grid, expected in (
        (None, small, 4),
        (156, small, 45),
        (20, small, 0),
        (479, large, 21),
    ):
        network = ModelConfig().network(
            condition_dim=384, grid=grid, num_tasks=34, num_prompted=num_prompted, leaves_own_out=True
        )
        assert network.num_corrections == expected
        assert math.prod(grid) * (2 + network.num_basis + network.num_corrections) <= 160_000_000


def test_two_numbers_of_patterns_are_refused():
    with pytest.raises(
        LoragenTrainError, match=r"^model\.num_basis is 3, but model\.generator\.num_basis 7; leave one"
    ):
        ModelConfig(num_basis=3, generator=GeneratorConfig(num_basis=7))


def test_a_zoo_of_one_task_starts_as_its_mean(config, make, tmp_path):
    make.manifest(tmp_path / "zoo", ("sums",))
    setup = build_setup(replace(config, data=replace(config.data, zoo=str(tmp_path / "zoo"))), tmp_path / "cache")
    with torch.no_grad():
        generated = setup.module.generator(setup.encoder.encode(["anything"])[None])[0]
    assert generated.abs().max() < 1e-5

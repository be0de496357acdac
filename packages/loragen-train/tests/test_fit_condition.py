"""Training on states of the base model: what the bundle then says, and what does not go together."""

from pathlib import Path

import pytest
import torch
from loragen_infer import GeneratorBundle, LoraGenerator, LoragenInferError
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, FitConfig, ModelConfig, TaskConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.training.fit import fit


@pytest.fixture(scope="module")
def train(tmp_path_factory, make, tiny_lm):
    """Trains for two epochs with the options of the model given."""
    root = tmp_path_factory.mktemp("condition")
    data = make.zoo(root)

    def run(**model: object) -> Path:
        options = {"hidden_dim": 16, "output_dim": 16, "num_hyperconv_blocks": 1, "condition_model": str(tiny_lm)}
        config = FitConfig(
            data=DataConfig(**{**data, "tasks": [TaskConfig(**task) for task in data["tasks"]]}),
            model=ModelConfig(**{**options, **model}),
            training=TrainingConfig(max_epochs=2, accelerator="cpu", seed=1),
            name="states",
            output_dir=str(root / "experiments"),
        )
        return fit(config)

    return run


@pytest.mark.parametrize(("condition", "width"), [("lm:middle", 32), ("both:2", 384 + 32)])
def test_a_generator_is_trained_on_states_and_finds_its_model_again(train, tiny_lm, condition, width):
    experiment = train(condition=condition)
    bundle = GeneratorBundle.load(experiment)
    assert bundle.condition == condition.replace("middle", "1")
    assert bundle.condition_model_name == str(tiny_lm)
    assert (bundle.text_encoder_name is None) == condition.startswith("lm")
    assert bundle.generator.config.condition_dim == width
    generator = LoraGenerator.from_pretrained(experiment)
    adapters = [generator.generate([prompt]).tensors for prompt in ("What is 3 + 10?", "Spell the word cat.")]
    assert any(not torch.equal(value, adapters[1][name]) for name, value in adapters[0].items())


def test_two_runs_give_the_same_generator(train):
    one, two = (GeneratorBundle.load(train(condition="lm:1")) for _ in range(2))
    assert one.fingerprint == two.fingerprint


def test_a_base_model_that_nobody_names_is_asked_for(train):
    with pytest.raises(LoragenInferError, match="base model, which is not known; name it as condition_model"):
        train(condition="lm:1", condition_model=None)


def test_a_condition_that_is_none_or_cannot_be_trained_is_refused():
    with pytest.raises(LoragenTrainError, match=r"^model\.condition is 'lm:0', where 'sentence', .* belongs .*\.$"):
        ModelConfig(condition="lm:0")
    for condition in ("lm:middle", "both:3"):
        message = rf"model\.freeze_text_encoder is false, but model\.condition is '{condition}', and the base model is"
        with pytest.raises(LoragenTrainError, match=message):
            ModelConfig(condition=condition, freeze_text_encoder=False)

"""The loss against a calculation by hand, and the learning rate over the steps."""

import pytest
import torch
from hyperconv import GeneratorConfig, HyperConvGenerator
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from loragen_train import LoragenTrainError
from loragen_train.config import TrainingConfig
from loragen_train.module import GeneratorModule, token_errors
from torch.utils.data import DataLoader


def make_module(mask: torch.Tensor, **settings: object) -> GeneratorModule:
    torch.manual_seed(0)
    config = GeneratorConfig(condition_dim=8, hidden_dim=8, grid=(3, 4), output_dim=6, num_hyperconv_blocks=1)
    return GeneratorModule(HyperConvGenerator(config), mask, TrainingConfig(**settings))


@given(seed=st.integers(0, 1000), mse_weight=st.floats(0, 2), l1_weight=st.floats(0.1, 2))
def test_the_loss_is_the_weighted_sum_over_real_positions(seed, mse_weight, l1_weight):
    torch.manual_seed(seed)
    mask = torch.rand(12, 6) < 0.7
    mask[0, 0] = True
    module = make_module(mask, mse_weight=mse_weight, l1_weight=l1_weight)
    condition, target = torch.randn(2, 3, 8), torch.randn(2, 12, 6)
    module.log_dict = lambda *args, **kwargs: None
    module.eval()
    predicted = module.generator(condition)
    differences = [
        (predicted[b, n, w] - target[b, n, w]).item()
        for b in range(2)
        for n in range(12)
        for w in range(6)
        if mask[n, w]
    ]
    mse = sum(value**2 for value in differences) / len(differences)
    l1 = sum(abs(value) for value in differences) / len(differences)
    got = module.training_step((condition, target), 0).item()
    assert got == pytest.approx(mse_weight * mse + l1_weight * l1, rel=1e-4)


def test_padding_does_not_count():
    mask = torch.ones(12, 6, dtype=torch.bool)
    mask[5:] = False
    predicted, target = torch.randn(2, 12, 6, requires_grad=True), torch.randn(2, 12, 6)
    before = token_errors(predicted, target, mask)
    wild = target.masked_fill(~mask, 1e9)
    assert torch.equal(torch.stack(before), torch.stack(token_errors(predicted, wild, mask)))
    sum(before).backward()
    assert not predicted.grad[:, 5:].any()
    assert predicted.grad[:, :5].all()


def test_errors_are_float32_whatever_comes_in():
    mask = torch.ones(12, 6, dtype=torch.bool)
    low = torch.randn(2, 12, 6, dtype=torch.bfloat16)
    assert {value.dtype for value in token_errors(low, low, mask)} == {torch.float32}


def rates(scheduler: str, num_epochs: int = 5) -> list[float]:
    """The learning rate of every step of a short training, and the one after the last."""
    module = make_module(torch.ones(12, 6, dtype=torch.bool), scheduler_type=scheduler, learning_rate=1e-3)
    seen = []
    module.on_train_batch_start = lambda *args: seen.append(module.optimizers().param_groups[0]["lr"])
    loader = DataLoader([(torch.randn(3, 8), torch.randn(12, 6)) for _ in range(4)], batch_size=2)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=num_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return [*seen, module.optimizers().param_groups[0]["lr"]]


def test_the_cosine_falls_to_zero_at_the_last_step():
    seen = rates("cosine")
    assert len(seen) == 11
    assert seen[0] == pytest.approx(1e-3)
    assert seen[5] == pytest.approx(5e-4)
    assert seen[-1] == pytest.approx(0, abs=1e-12)
    assert seen == sorted(seen, reverse=True)


def test_the_constant_rate_stays():
    assert rates("constant") == [1e-3] * 11


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_epochs": 0}, r"training\.max_epochs is 0"),
        ({"learning_rate": -1.0}, r"training\.learning_rate is -1\.0"),
        ({"learning_rate": 1e38}, r"training\.learning_rate is 1e\+38, .* at most 1e30"),
        ({"learning_rate": float("inf")}, r"training\.learning_rate is inf"),
        ({"l1_weight": -0.1}, r"training\.l1_weight is -0\.1"),
        ({"mse_weight": float("nan")}, r"training\.mse_weight is nan"),
        ({"weight_decay": float("inf")}, r"training\.weight_decay is inf"),
        ({"mse_weight": 0.0, "l1_weight": 0.0}, "both 0; there would be no loss"),
        ({"seed": -1}, r"training\.seed is -1"),
    ],
)
def test_a_setting_out_of_range_is_named(values, message):
    with pytest.raises(LoragenTrainError, match=message):
        TrainingConfig(**values)

"""The loss against a calculation by hand, what makes a step repeatable, optimizers and schedules."""

from types import SimpleNamespace

import pytest
import torch
from hyperconv import GeneratorConfig, HyperConvGenerator
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_tokenizer import TokenLayout, TokenStats
from loragen_train import LoragenTrainError
from loragen_train.configs.objectives import PhaseConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.training.condition import FrozenCondition
from loragen_train.training.module import GeneratorModule
from loragen_train.training.objectives import ReconstructionObjective
from loragen_train.training.optimization import make_optimizer, make_schedule
from loragen_train.training.pairs import Batch

NUM_PROMPTS, EMBEDDING_DIM = 5, 8


@pytest.fixture(scope="module")
def build(make):
    adapters = [make.adapter(seed) for seed in range(3)]
    # Of a width that leaves padding in the tokens.
    layout = TokenLayout.from_adapter(adapters[0], token_dim=24)
    tokens = [layout.encode(adapter) for adapter in adapters]
    stats = TokenStats.from_tokens(tokens)

    def run(**settings: object) -> GeneratorModule:
        torch.manual_seed(0)
        num_layers, tokens_per_layer, token_dim = layout.grid
        config = GeneratorConfig(
            condition_dim=EMBEDDING_DIM, hidden_dim=8, grid=(num_layers, tokens_per_layer), output_dim=token_dim
        )
        condition = FrozenCondition(torch.randn(NUM_PROMPTS, EMBEDDING_DIM))
        training = TrainingConfig(**settings)
        objectives = {"reconstruction": ReconstructionObjective(layout, stats, training)}
        return GeneratorModule(HyperConvGenerator(config), condition, objectives, training).eval()

    run.batch = Batch(
        torch.tensor([[0, 1], [2, 3]]), torch.ones(2, 2, dtype=torch.bool), torch.stack(tokens[:2]), torch.ones(2)
    )
    run.layout, run.stats = layout, stats
    return run


def by_hand(module: GeneratorModule, build, weights: torch.Tensor | None = None) -> tuple[float, float]:
    predicted = module.generator(module.condition.embeddings[build.batch.prompts])
    target = build.stats.normalize(build.batch.tokens)
    mask = build.layout.mask()
    squares = absolutes = 0.0
    for n, w in mask.nonzero().tolist():
        weight = 1.0 if weights is None else weights[n].item()
        for b in range(2):
            difference = (predicted[b, n, w] - target[b, n, w]).item()
            squares += weight * difference**2
            absolutes += weight * abs(difference)
    count = 2 * int(mask.sum())
    return squares / count, absolutes / count


@given(mse_weight=st.floats(0, 2), l1_weight=st.floats(0.1, 2))
def test_the_loss_is_the_weighted_sum_over_real_positions(build, mse_weight, l1_weight):
    module = build(mse_weight=mse_weight, l1_weight=l1_weight)
    assert not build.layout.mask().all()
    mse, l1 = by_hand(module, build)
    assert module.training_step(build.batch, 0).item() == pytest.approx(mse_weight * mse + l1_weight * l1, rel=1e-4)
    logged = module.objective.train_metrics.compute()
    assert logged["mse"].item() == pytest.approx(mse, rel=1e-4)
    assert logged["l1"].item() == pytest.approx(l1, rel=1e-4)


def test_importance_weighs_tokens_by_how_much_they_vary(build):
    module = build(importance_weights=True)
    importance, mask = build.stats.importance(), build.layout.mask()
    scale = importance[:, None].expand_as(mask)[mask].mean()
    assert len((importance / scale).unique()) > 1
    mse, l1 = by_hand(module, build, importance / scale)
    assert module.training_step(build.batch, 0).item() == pytest.approx(mse + 0.1 * l1, rel=1e-4)
    # The plain errors beside it are not weighted.
    module.validation_step(build.batch, 0)
    assert module.objective.val_metrics.compute()["mae"].item() == pytest.approx(by_hand(module, build)[1], rel=1e-4)


def test_padding_gets_no_gradient(build):
    module = build()
    wild = build.batch._replace(tokens=build.batch.tokens.masked_fill(~build.layout.mask(), 1e6))
    assert torch.equal(module.training_step(build.batch, 0), module.training_step(wild, 0))


def test_metrics_are_in_z_scores_and_in_weights_and_cosines_are_of_weight_changes(build):
    module = build()
    module.validation_step(build.batch, 0)
    predicted_BNW = module.generator(module.condition.embeddings[build.batch.prompts])
    predicted = [build.layout.decode(build.stats.denormalize(row)) for row in predicted_BNW.detach()]
    target = [build.layout.decode(row) for row in build.batch.tokens]
    flat = [
        torch.cat([value.flatten() for adapter in side for value in adapter.tensors.values()])
        for side in (predicted, target)
    ]
    difference = flat[0] - flat[1]
    logged = {f"val_{name}": value.item() for name, value in module.objective.val_metrics.compute().items()}
    assert logged["val_weight_mae"] == pytest.approx(difference.abs().mean().item(), rel=1e-4)
    assert logged["val_weight_rmse"] == pytest.approx(difference.square().mean().sqrt().item(), rel=1e-4)
    assert logged["val_weight_relative_error"] == pytest.approx((difference.norm() / flat[1].norm()).item(), rel=1e-4)
    cosines = torch.tensor(
        [
            [
                torch.cosine_similarity(p.delta_weight(name).flatten(), t.delta_weight(name).flatten(), dim=0).item()
                for name in p.modules
            ]
            for p, t in zip(predicted, target, strict=True)
        ]
    )
    assert logged["val_weight_cosine"] == pytest.approx(cosines.mean().item(), abs=1e-5)
    assert logged["val_weight_cosine_worst_module"] == pytest.approx(cosines.mean(dim=0).min().item(), abs=1e-5)
    assert logged["val_rmse"] == pytest.approx(logged["val_mse"] ** 0.5, rel=1e-5)


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5), num_repeats=st.integers(0, 2))
def test_the_metrics_of_an_epoch_do_not_depend_on_its_batches_and_repeats_do_not_count(build, sizes, num_repeats):
    module, total = build(), sum(sizes)
    draw = torch.Generator().manual_seed(total)
    prompts = torch.randint(NUM_PROMPTS, (total, 2), generator=draw)
    tokens = build.batch.tokens[:1] + torch.randn(total, *build.batch.tokens.shape[1:], generator=draw)
    seen = []
    for split in ([total], sizes):
        module.on_validation_epoch_start()
        for number, part in enumerate(torch.arange(total).split(split)):
            counts = torch.cat([torch.ones(len(part)), torch.zeros(num_repeats)])
            rows = torch.cat([part, torch.zeros(num_repeats, dtype=torch.long)])
            module.validation_step(
                Batch(prompts[rows], torch.ones_like(prompts[rows], dtype=torch.bool), tokens[rows], counts), number
            )
        seen.append({name: value.item() for name, value in module.objective.val_metrics.compute().items()})
    assert seen[0] == pytest.approx(seen[1], rel=1e-4, abs=1e-6)
    assert seen[0]["rmse"] ** 2 == pytest.approx(seen[0]["mse"], rel=1e-4)


def test_training_is_measured_on_the_first_batch_of_validated_epochs(build):
    losses = {"loss", "mse", "l1"}
    for max_epochs, batch_idx, is_measured in [(1, 0, True), (1, 1, False), (20, 0, False)]:
        module = build(max_epochs=max_epochs)
        module.training_step(build.batch, batch_idx)
        logged = set(module.objective.train_metrics.compute())
        assert losses <= logged
        assert (logged != losses) is is_measured


def test_noise_follows_from_the_number_of_the_step(build):
    noisy, plain = build(condition_noise=0.5, target_noise=0.5), build()

    def loss(module, number):
        module._trainer = SimpleNamespace(global_step=number, global_rank=0, current_epoch=0)
        module.on_train_batch_start(build.batch, 0)
        return module.training_step(build.batch, 1).item()

    assert loss(noisy, 3) == loss(noisy, 3)
    assert loss(noisy, 3) != loss(noisy, 4)
    assert loss(plain, 3) == loss(plain, 4)
    losses = []
    for module in (noisy, plain):
        module.on_validation_epoch_start()
        module.validation_step(build.batch, 0)
        losses.append(module.objective.val_metrics.compute()["loss"])
    assert losses[0] == losses[1]


def rates(num_steps: int = 10, **settings: object) -> list[float]:
    """The learning rate of every step, and the one after the last."""
    config = TrainingConfig(learning_rate=1e-3, **settings)
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], config)
    schedule = make_schedule(optimizer, config, [num_steps])
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(num_steps):
        optimizer.step()
        schedule["scheduler"].step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_the_cosine_falls_to_zero_at_the_last_step():
    seen = rates()
    assert seen[0] == pytest.approx(1e-3)
    assert seen[5] == pytest.approx(5e-4)
    assert seen[-1] == pytest.approx(0, abs=1e-12)
    assert seen == sorted(seen, reverse=True)


def test_the_line_is_straight_and_the_constant_stays():
    assert rates(scheduler_type="linear") == pytest.approx([1e-3 * (1 - step / 10) for step in range(11)])
    assert rates(scheduler_type="constant") == [1e-3] * 11


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_warm_up_rises_to_the_peak(name):
    seen = rates(scheduler_type=name, warmup_steps=4)
    assert seen[:5] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3])


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_an_optimizer_is_torchs_of_that_name(name, kind):
    optimizer = make_optimizer(
        [torch.nn.Parameter(torch.zeros(1))], TrainingConfig(optimizer_type=name, weight_decay=0.3)
    )
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


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
        ({"condition_noise": -1.0}, r"training\.condition_noise is -1\.0"),
        ({"accumulate_grad_batches": 0}, r"training\.accumulate_grad_batches is 0"),
        ({"validate_every_n_epochs": 0}, r"training\.validate_every_n_epochs is 0"),
        ({"scheduler_type": "plateau"}, r"training\.scheduler_type is 'plateau', .* one of cosine, linear, constant"),
    ],
)
def test_a_setting_out_of_range_is_named(values, message):
    with pytest.raises(LoragenTrainError, match=message):
        TrainingConfig(**values)


def test_every_phase_has_a_schedule_of_its_own():
    phases = [
        PhaseConfig(objective="reconstruction", max_epochs=1, learning_rate=1e-3),
        PhaseConfig(objective="lm", max_epochs=1, learning_rate=2e-4),
    ]
    config = TrainingConfig(phases=phases, scheduler_type="linear", warmup_steps=2)
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], config)
    schedule = make_schedule(optimizer, config, [6, 4])
    seen = []
    for _ in range(10):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    first, second = ([0, 0.5, 1, 0.75, 0.5, 0.25], [0, 0.5, 1, 0.5])
    assert seen == pytest.approx([1e-3 * factor for factor in first] + [2e-4 * factor for factor in second])

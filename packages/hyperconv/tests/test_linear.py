"""The linear expander: its plain twin, its start as ridge regression, and what learns from there."""

import pytest
import reference
import torch
from hyperconv import GeneratorConfig, HyperConvError, HyperConvGenerator, fit_ridge, num_basis_for
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL = {"condition_dim": 6, "hidden_dim": 8, "grid": (4, 3), "output_dim": 8}
WIDTHS = st.sampled_from([8, 5])


def made(num_tasks, *, seed=0, **options):
    """A generator that starts as a ridge regression, with the fit, its rows [K, S, D] and the tokens [K, N, W]."""
    torch.manual_seed(seed)
    generator = HyperConvGenerator(GeneratorConfig(**{**SMALL, **options}))
    rows_KSD = torch.randn(num_tasks, 1, 6) + 0.3 * torch.randn(num_tasks, 4, 6) + 2
    means_KNW = torch.randn(num_tasks, 12, generator.config.output_dim) + torch.randn(12, 1)
    fit = fit_ridge(rows_KSD, means_KNW.flatten(1) @ means_KNW.flatten(1).T)
    generator.start_from(fit, means_KNW)
    return generator.eval(), fit, rows_KSD, means_KNW


def predicted(fit, condition_BPD, means_KNW):
    return torch.einsum("bk,knw->bnw", fit.task_weights(condition_BPD.mean(1)), means_KNW)


@settings(max_examples=15, deadline=None)
@given(
    num_basis=st.integers(1, 4),
    width=WIDTHS,
    mask_BP=st.lists(st.lists(st.booleans(), min_size=3, max_size=3).filter(any), min_size=1, max_size=3),
)
def test_it_equals_its_plain_twin_in_value_and_gradient(num_basis, width, mask_BP):
    mask_BP = torch.tensor(mask_BP)
    condition_BPD = torch.randn(*mask_BP.shape, 6, dtype=torch.float64)
    config = GeneratorConfig(**{**SMALL, "output_dim": width, "num_basis": num_basis, "num_hyperconv_blocks": 0})
    generator = HyperConvGenerator(config, dtype=torch.float64)
    with torch.no_grad():
        for tensor in (*generator.parameters(), generator.expander.center):
            tensor.add_(torch.randn_like(tensor))
    fast = generator(condition_BPD, mask_BP)
    plain = reference.linear_expander(generator.expander, condition_BPD, mask_BP).flatten(1, 2)
    gradients = [torch.autograd.grad(tokens.sin().sum(), list(generator.parameters())) for tokens in (fast, plain)]
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(*gradients)


@settings(max_examples=20, deadline=None)
@given(
    num_tasks=st.integers(1, 7),
    extra=st.integers(0, 2),
    width=WIDTHS,
    blocks=st.sampled_from([0, 1, 3]),
    kind=st.sampled_from(["sequential", "dual"]),
    seed=st.integers(0, 99),
)
def test_it_starts_as_the_ridge_regression_whatever_the_blocks(num_tasks, extra, width, blocks, kind, seed):
    num_basis = max(1, num_tasks - 1 + extra)
    generator, fit, _, means_KNW = made(
        num_tasks, seed=seed, num_basis=num_basis, output_dim=width, num_hyperconv_blocks=blocks, block=kind
    )
    condition_BPD = torch.randn(3, 5, 6) + 2
    torch.testing.assert_close(generator(condition_BPD), predicted(fit, condition_BPD, means_KNW), rtol=1e-5, atol=1e-5)
    at_center_BPD = fit.center_D.expand(1, 2, 6)
    torch.testing.assert_close(generator(at_center_BPD)[0], means_KNW.mean(0), rtol=1e-5, atol=1e-5)


def test_fewer_patterns_keep_the_directions_in_which_the_tasks_differ_most():
    generator, fit, _, means_KNW = made(7, num_basis=3)
    mean_NW = means_KNW.mean(0)
    left_KK, values_K, right_KV = torch.linalg.svd((means_KNW - mean_NW).flatten(1), full_matrices=False)
    best_KNW = mean_NW + ((left_KK[:, :3] * values_K[:3]) @ right_KV[:3]).view_as(means_KNW)
    condition_BPD = torch.randn(3, 5, 6) + 2
    torch.testing.assert_close(generator(condition_BPD), predicted(fit, condition_BPD, best_KNW), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_features_are_as_large_as_asked_over_the_rows_of_the_fit_and_the_answer_is_the_same(scale):
    generator, fit, rows_KSD, means_KNW = made(7, num_basis=6, feature_scale=scale)
    features = generator.expander.features(rows_KSD.flatten(0, 1) - fit.center_D)
    assert features.square().mean().sqrt().item() == pytest.approx(scale, rel=1e-4)
    torch.testing.assert_close(generator(rows_KSD), predicted(fit, rows_KSD, means_KNW), rtol=1e-5, atol=1e-5)


def test_a_large_zoo_is_read_in_chunks_to_the_same_start(monkeypatch):
    whole, *_ = made(5, num_basis=4)
    monkeypatch.setattr("hyperconv.linear._CHUNK_VALUES", 100)
    parts, *_ = made(5, num_basis=4)
    condition_BPD = torch.randn(3, 5, 6) + 2
    torch.testing.assert_close(parts(condition_BPD), whole(condition_BPD), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sequential", "dual"])
def test_from_the_start_every_part_learns_and_patterns_beyond_the_tasks_too(kind):
    generator, _, rows_KSD, means_KNW = made(4, num_basis=6, num_hyperconv_blocks=2, block=kind)
    assert torch.equal(generator.expander.basis[3:], torch.zeros(3, 4, 3, 8))
    before = {name: parameter.detach().clone() for name, parameter in generator.train().named_parameters()}
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2, weight_decay=0)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (generator(rows_KSD) - means_KNW).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if len(losses) == 2:
            blocks = [parameter.grad for parameter in generator.decoder.parameters()]
            assert all(gradient.abs().max() > 0 for gradient in blocks)
    assert losses[-1] < 0.5 * losses[0]
    assert [name for name, parameter in generator.named_parameters() if torch.equal(parameter, before[name])] == []
    assert generator.expander.basis[3:].abs().max() > 0


def test_starting_anew_forgets_what_was_learned():
    generator, fit, _, means_KNW = made(4, num_basis=3)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    generator.start_from(fit, means_KNW)
    condition_BPD = torch.randn(3, 5, 6) + 2
    torch.testing.assert_close(generator(condition_BPD), predicted(fit, condition_BPD, means_KNW), rtol=1e-5, atol=1e-5)


def test_without_a_start_it_is_centred_on_the_prompts_given():
    torch.manual_seed(0)
    generator = HyperConvGenerator(GeneratorConfig(**SMALL, num_hyperconv_blocks=0))
    with torch.no_grad():
        generator.expander.basis.normal_()
    seen_MD, condition_BPD = torch.randn(40, 6) + 3, torch.randn(2, 3, 6)
    expected = generator(condition_BPD - seen_MD.mean(0))
    generator.center_on(seen_MD)
    torch.testing.assert_close(generator(condition_BPD), expected, rtol=1e-4, atol=1e-5)


def test_without_blocks_the_grid_is_made_once():
    generator, *_ = made(5, num_basis=4, num_hyperconv_blocks=0)
    condition_BPD = torch.randn(16, 2, 6)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        tokens_BNW = generator(condition_BPD)
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert [size for size in sizes if size >= tokens_BNW.nbytes] == [tokens_BNW.nbytes]


def test_what_it_cannot_start_from_is_refused():
    generator, fit, _, means_KNW = made(4, num_basis=3)
    state = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    wrong = means_KNW.clone()
    wrong[2, 1, 0] = torch.nan
    for tokens, message in (
        (means_KNW[:3], r"token means have shape \[3, 12, 8\], expected \[4, 12, 8\] for a fit of 4 task"),
        (means_KNW[:, :5], r"token means have shape \[4, 5, 8\]"),
        (wrong, r"token means of shape \[4, 12, 8\] hold NaN or infinite"),
    ):
        with pytest.raises(HyperConvError, match=message):
            generator.start_from(fit, tokens)
    assert all(torch.equal(tensor, state[name]) for name, tensor in generator.state_dict().items())
    with pytest.raises(HyperConvError, match="fit is of embeddings of length 6, expected condition_dim=7"):
        HyperConvGenerator(GeneratorConfig(**{**SMALL, "condition_dim": 7})).start_from(fit, means_KNW)
    with pytest.raises(HyperConvError, match="expander is 'basis', expected \"linear\" to start from"):
        HyperConvGenerator(GeneratorConfig(**SMALL, expander="basis")).start_from(fit, means_KNW)


@given(num_tasks=st.integers(1, 600), values=st.integers(1, 10**8), max_parameters=st.integers(1, 10**9))
def test_patterns_grow_with_the_tasks_within_the_budget(num_tasks, values, max_parameters):
    num_basis = num_basis_for(num_tasks, values, max_parameters)
    assert 2 <= num_basis <= max(2, num_tasks - 1)
    assert num_basis == 2 or (num_basis + 1) * values <= max_parameters
    assert num_basis >= min(num_tasks - 1, max_parameters // values - 1)

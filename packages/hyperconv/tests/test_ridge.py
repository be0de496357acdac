"""Ridge regression over tasks: its closed forms against fitting for real, and its fallback to the mean."""

import pytest
import torch
from hyperconv import HyperConvError, fit_ridge, relatives
from hypothesis import given, settings
from hypothesis import strategies as st

PENALTIES = [10.0 ** (1 - quarter / 4) for quarter in range(21)]


def tasks(seed, num_tasks=6, num_rows=3, width=5, noise=0.3):
    """Rows [K, S, D] and mean adapters [K, V] that depend on them linearly, and on much else."""
    random = torch.Generator().manual_seed(seed)
    centers_KD = torch.randn(num_tasks, width, generator=random, dtype=torch.float64) + 2
    rows_KSD = centers_KD[:, None] + noise * torch.randn(
        num_tasks, num_rows, width, generator=random, dtype=torch.float64
    )
    map_DV = torch.randn(width, 20, generator=random, dtype=torch.float64)
    means_KV = centers_KD @ map_DV + torch.randn(num_tasks, 20, generator=random, dtype=torch.float64)
    return rows_KSD, means_KV


def predicted_by_normal_equations(rows_KSD, means_KV, penalty, query_QD):
    """Ridge regression onto the adapters themselves, as the textbook has it."""
    x_nD, y_nV = rows_KSD.flatten(0, 1), means_KV.repeat_interleave(rows_KSD.shape[1], dim=0)
    x_center_D, y_center_V = x_nD.mean(0), y_nV.mean(0)
    x_nD = x_nD - x_center_D
    inner_DD = x_nD.T @ x_nD + penalty * rows_KSD.shape[1] * torch.eye(x_nD.shape[1], dtype=x_nD.dtype)
    return y_center_V + (query_QD - x_center_D) @ torch.linalg.solve(inner_DD, x_nD.T @ (y_nV - y_center_V))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    num_tasks=st.integers(2, 7),
    num_rows=st.integers(1, 4),
    width=st.integers(1, 9),
    penalty=st.floats(1e-4, 10),
    shift=st.sampled_from([0.0, 5.0]),
)
def test_the_weights_give_ridge_regression_onto_the_adapters(seed, num_tasks, num_rows, width, penalty, shift):
    rows_KSD, means_KV = tasks(seed, num_tasks, num_rows, width)
    means_KV = means_KV + shift
    fit = fit_ridge(rows_KSD, means_KV @ means_KV.T, penalties=[penalty])
    query_QD = torch.randn(4, width, dtype=torch.float64) + 2
    weights_QK = fit.task_weights(query_QD)
    expected_QV = predicted_by_normal_equations(rows_KSD, means_KV, penalty, query_QD)
    torch.testing.assert_close(weights_QK.double() @ means_KV, expected_QV, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(weights_QK.sum(1), torch.ones(4), rtol=1e-4, atol=1e-4)
    assert fit.penalty == penalty
    spread = (fit.task_weights(rows_KSD.flatten(0, 1)) - 1 / num_tasks).square().mean().sqrt()
    assert fit.spread == pytest.approx(float(spread), rel=1e-3, abs=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), num_tasks=st.integers(2, 7), num_rows=st.integers(1, 4), width=st.integers(1, 9))
def test_the_penalty_is_the_best_of_really_leaving_each_task_and_its_relatives_out(seed, num_tasks, num_rows, width):
    rows_KSD, means_KV = tasks(seed, num_tasks, num_rows, width)
    others_of = [(~related_K).nonzero().flatten().tolist() for related_K in relatives(rows_KSD)]
    variance = sum(float((means_KV[others_of[k]].mean(0) - means_KV[k]).square().sum()) for k in range(num_tasks))
    errors = {}
    for penalty in PENALTIES:
        errors[penalty] = 0.0
        for k, others in enumerate(others_of):
            left_out_SV = predicted_by_normal_equations(rows_KSD[others], means_KV[others], penalty, rows_KSD[k])
            errors[penalty] += float((left_out_SV - means_KV[k]).square().sum()) / num_rows
    fit = fit_ridge(rows_KSD, means_KV @ means_KV.T, penalties=PENALTIES)
    assert errors[fit.penalty] == pytest.approx(min(errors.values()), rel=1e-6)
    assert fit.left_out_error == pytest.approx(min(errors.values()) / variance, rel=1e-6)


def test_relatives_are_tasks_of_like_prompts_and_never_all():
    rows_KSD = torch.tensor([[[5.0, 1.0, 0.0]], [[5.0, 1.1, 0.1]], [[5.0, -1.0, 0.0]], [[5.0, -1.0, -2.0]]])
    related_KK = relatives(rows_KSD)
    assert related_KK.tolist() == related_KK.T.tolist()
    assert related_KK.int().tolist()[:2] == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert related_KK.diagonal().all()
    alone = torch.zeros(3, 1, 2)
    assert torch.equal(relatives(alone), torch.eye(3, dtype=torch.bool))


def test_variants_of_a_task_do_not_hide_that_unlike_tasks_cannot_be_predicted():
    """Families of five variants with one adapter each that the prompts say nothing of."""
    random = torch.Generator().manual_seed(0)
    centers_FD, means_FV = torch.randn(8, 64, generator=random), torch.randn(8, 200, generator=random)
    rows_KSD = centers_FD.repeat_interleave(5, dim=0)[:, None] + 0.1 * torch.randn(40, 3, 64, generator=random)
    means_KV = means_FV.repeat_interleave(5, dim=0)
    fit = fit_ridge(rows_KSD, means_KV @ means_KV.T)
    unlike_QD = torch.randn(20, 64, generator=random)
    drift = (fit.task_weights(unlike_QD) @ means_KV - means_KV.mean(0)).square().sum(1).mean()
    assert fit.left_out_error > 0.95
    assert drift < 0.1 * (means_KV - means_KV.mean(0)).square().sum(1).mean()


def test_the_scale_of_the_embeddings_does_not_matter():
    rows_KSD, means_KV = tasks(0)
    small, large = (fit_ridge(scale * rows_KSD, means_KV @ means_KV.T) for scale in (1.0, 300.0))
    query_QD = torch.randn(3, 5)
    torch.testing.assert_close(large.task_weights(300 * query_QD), small.task_weights(query_QD), rtol=1e-4, atol=1e-4)
    assert large.left_out_error == pytest.approx(small.left_out_error)


def test_what_cannot_be_predicted_falls_back_to_the_mean():
    rows_KSD, means_KV = tasks(0)
    at_center_QK = fit_ridge(rows_KSD, means_KV @ means_KV.T).task_weights(rows_KSD.mean((0, 1))[None])
    torch.testing.assert_close(at_center_QK, torch.full((1, 6), 1 / 6))
    unlike = fit_ridge(torch.zeros(6, 3, 5), means_KV @ means_KV.T)
    assert unlike.penalty == 10
    assert torch.equal(unlike.weights_KD, torch.zeros(6, 5))
    alike = fit_ridge(rows_KSD, torch.ones(6, 6))
    assert alike.left_out_error == 1.0
    assert alike.weights_KD.isfinite().all()


def test_a_single_task_is_answered_with_itself():
    fit = fit_ridge(torch.randn(1, 4, 5), torch.ones(1, 1))
    assert torch.equal(fit.task_weights(torch.randn(3, 5)), torch.ones(3, 1))
    assert fit.left_out_error == 1.0


REFUSED = [
    (torch.zeros(2, 3), torch.eye(2), None, r"rows have shape \[2, 3\], expected \[K, S, D\]"),
    (torch.zeros(2, 0, 3), torch.eye(2), None, r"rows have shape \[2, 0, 3\]"),
    (torch.zeros(2, 1, 3), torch.eye(3), None, r"gram has shape \[3, 3\], expected \[2, 2\] for rows of 2 task"),
    (torch.full((2, 1, 3), torch.nan), torch.eye(2), None, "rows of shape .* hold 6 NaN"),
    (torch.zeros(2, 1, 3), torch.full((2, 2), torch.inf), None, "gram of shape .* hold 4 NaN or infinite"),
    (torch.zeros(2, 1, 3), torch.eye(2), [], r"penalties are \[\], expected one or more"),
    (torch.zeros(2, 1, 3), torch.eye(2), [1.0, 0.0], "penalties are .* greater than 0"),
]


@pytest.mark.parametrize(("rows_KSD", "gram_KK", "penalties", "message"), REFUSED)
def test_what_does_not_fit_is_refused(rows_KSD, gram_KK, penalties, message):
    with pytest.raises(HyperConvError, match=message):
        fit_ridge(rows_KSD, gram_KK, penalties=penalties)

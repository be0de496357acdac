"""Nearest task and ridge regression against what they should find, and against scikit-learn done the long way."""

import numpy as np
import pytest
import torch
from loragen_infer import LoragenInferError
from loragen_infer.evaluation import baselines
from loragen_infer.evaluation.baselines import RidgeSettings, nearest_task, ridge_tokens, without_task
from loragen_infer.evaluation.task_means import TaskMeans
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel


def make_tasks(num_tasks=12, *, seed=0, noise=0.0):
    """Tasks whose tokens are a smooth function of their embedding."""
    random = torch.Generator().manual_seed(seed)
    conditions = torch.nn.functional.normalize(torch.randn(num_tasks, 3, generator=random), dim=1)
    tokens = torch.sin(conditions @ torch.randn(3, 20, generator=random)).view(num_tasks, 4, 5)
    tokens += noise * torch.randn(tokens.shape, generator=random) + 7.0
    return TaskMeans(
        names=tuple(f"task{index}" for index in range(num_tasks)), condition_means=conditions, token_means=tokens
    )


def test_the_nearest_task_is_the_one_of_least_angle():
    tasks = make_tasks()
    for index in range(12):
        # Length does not matter, direction does.
        assert nearest_task(tasks, 0.1 * tasks.condition_means[index] + 0.001) == index


def test_ridge_learns_a_smooth_map_that_the_mean_and_the_nearest_task_do_not():
    tasks = make_tasks(40)
    errors = {"ridge": [], "nearest": [], "mean": []}
    for index, name in enumerate(tasks.names):
        others, query, truth = without_task(tasks, name), tasks.condition_means[index], tasks.token_means[index]
        found, _ = ridge_tokens(others, query)
        errors["ridge"].append((found - truth).norm().item())
        errors["nearest"].append((others.token_means[nearest_task(others, query)] - truth).norm().item())
        errors["mean"].append((others.token_means.mean(dim=0) - truth).norm().item())
    ridge, nearest, mean = (np.mean(errors[row]) for row in ("ridge", "nearest", "mean"))
    assert ridge < 0.5 * nearest
    assert ridge < 0.5 * mean


def test_ridge_is_scikit_learn_s_on_centred_targets():
    tasks = make_tasks(9, noise=0.1)
    settings = RidgeSettings(gamma=0.7, penalty=0.05)
    conditions, targets = tasks.condition_means.double().numpy(), tasks.token_means.flatten(1).double().numpy()
    query = np.array([[0.2, -0.5, 0.9]])
    weights = baselines._weights(conditions, query, settings)
    assert weights.sum() == pytest.approx(1)
    # The kernel that is centred by hand, and all targets at once.
    centre = np.eye(9) - 1 / 9
    kernel, asked = rbf_kernel(conditions, gamma=0.7), rbf_kernel(query, conditions, gamma=0.7)
    model = KernelRidge(kernel="precomputed", alpha=0.05).fit(centre @ kernel @ centre, targets - targets.mean(axis=0))
    expected = targets.mean(axis=0) + model.predict((asked - kernel.mean(axis=0)) @ centre)
    assert np.allclose(weights @ targets, expected)


def test_the_left_out_error_is_that_of_really_leaving_each_task_out():
    tasks = make_tasks(8, noise=0.2)
    conditions, targets = tasks.condition_means.double().numpy(), tasks.token_means.flatten(1).double().numpy()
    gram = baselines._centred_gram(tasks.token_means.flatten(1))
    for settings in (RidgeSettings(gamma=0.3, penalty=0.01), RidgeSettings(gamma=2.0, penalty=1.0)):
        smoother = baselines._weights(conditions, conditions, settings)
        total = 0.0
        for index in range(8):
            keep = [other for other in range(8) if other != index]
            weights = baselines._weights(conditions[keep], conditions[[index]], settings)
            total += float(np.square(weights @ targets[keep] - targets[index]).sum())
        assert baselines._left_out_error(smoother, gram) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_few_tasks_are_enough(num_tasks):
    tasks = make_tasks(num_tasks)
    found, _ = ridge_tokens(tasks, tasks.condition_means[0])
    assert torch.isfinite(found).all()
    if num_tasks == 1:
        assert torch.equal(found, tasks.token_means[0])


def test_tasks_of_equal_prompts_get_the_mean():
    tasks = make_tasks(4)
    same = TaskMeans(names=tasks.names, condition_means=torch.ones(4, 3), token_means=tasks.token_means)
    found, _ = ridge_tokens(same, torch.ones(3))
    assert torch.allclose(found, tasks.token_means.mean(dim=0), atol=1e-5)


def test_a_task_that_is_left_out_leaves_no_trace():
    tasks = make_tasks(5)
    without = without_task(tasks, "task2")
    assert without.names == ("task0", "task1", "task3", "task4")
    assert torch.equal(without.token_means[2], tasks.token_means[3])
    assert without_task(tasks, "unknown") is tasks
    with pytest.raises(LoragenInferError, match="no training task but 'task0'"):
        without_task(make_tasks(1), "task0")

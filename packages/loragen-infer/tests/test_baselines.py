"""Nearest task and ridge regression against what they should find, and against scikit-learn done the long way."""

import dataclasses

import numpy as np
import pytest
import torch
from loragen_infer.evaluation import baselines
from loragen_infer.evaluation.baselines import Ridge, gram_of, nearest_task, subset_means
from loragen_infer.evaluation.task_means import (
    TASK_MEANS_NAME,
    TaskMeans,
    TaskMeansWriter,
    kept_prompts,
    read_task_means,
)


def make_tasks(num_tasks=12, *, seed=0, noise=0.0):
    """Tasks whose tokens are a linear function of their embedding."""
    random = torch.Generator().manual_seed(seed)
    conditions = torch.nn.functional.normalize(torch.randn(num_tasks, 3, generator=random), dim=1)
    tokens = (conditions @ torch.randn(3, 20, generator=random)).view(num_tasks, 4, 5)
    tokens += noise * torch.randn(tokens.shape, generator=random) + 7.0
    return TaskMeans(
        names=tuple(f"task{index}" for index in range(num_tasks)), condition_means=conditions, token_means=tokens
    )


def ridge_tokens(tasks, query, *, without=None):
    among = [index for index in range(len(tasks.names)) if index != without]
    return Ridge(tasks).tokens(query, among=among, num_prompts=8)


def test_the_nearest_task_is_the_one_of_least_angle():
    tasks = make_tasks()
    for index in range(12):
        # Length does not matter, direction does.
        assert nearest_task(tasks, 0.1 * tasks.condition_means[index] + 0.001, range(12)) == index
    assert nearest_task(tasks, tasks.condition_means[3], [2, 4, 9]) in (2, 4, 9)


def test_ridge_learns_a_linear_map_that_the_mean_and_the_nearest_task_do_not():
    tasks = make_tasks(40)
    errors = {"ridge": [], "nearest": [], "mean": []}
    for index in range(40):
        others = [other for other in range(40) if other != index]
        query, truth = tasks.condition_means[index], tasks.token_means[index]
        errors["ridge"].append((ridge_tokens(tasks, query, without=index) - truth).norm().item())
        errors["nearest"].append((tasks.token_means[nearest_task(tasks, query, others)] - truth).norm().item())
        errors["mean"].append((tasks.token_means[others].mean(dim=0) - truth).norm().item())
    ridge, nearest, mean = (np.mean(errors[row]) for row in ("ridge", "nearest", "mean"))
    assert ridge < 0.5 * nearest
    assert ridge < 0.5 * mean


def test_ridge_is_scikit_learn_s_of_the_chosen_penalty_on_the_subset_means():
    from sklearn.linear_model import Ridge as Reference

    tasks = make_tasks(9, noise=0.1)
    random = torch.Generator().manual_seed(1)
    prompts = [mean + 0.2 * torch.randn(12, 3, generator=random) for mean in tasks.condition_means]
    tasks = dataclasses.replace(tasks, prompt_embeddings=prompts)
    ridge, query = Ridge(tasks), torch.tensor([0.2, -0.5, 0.9])
    found_NW = ridge.tokens(query, among=range(9), num_prompts=4)
    rows_KSD = subset_means(prompts, 4)
    (fit,) = ridge._fits.values()
    model = Reference(alpha=fit.penalty * 8).fit(
        rows_KSD.flatten(0, 1).double().numpy(), tasks.token_means.flatten(1).repeat_interleave(8, dim=0).numpy()
    )
    assert np.allclose(found_NW.flatten().numpy(), model.predict(query.double().numpy()[None])[0], atol=1e-4)


def test_subsets_are_the_same_of_a_place_and_as_large_as_asked_for():
    prompts = [torch.eye(6), torch.eye(6)[:3], torch.eye(6)]
    rows_KSD = subset_means(prompts, 4)
    assert rows_KSD.shape == (3, 8, 6)
    assert torch.equal(subset_means(prompts, 4), rows_KSD)
    assert torch.equal((rows_KSD[0] * 4).sum(dim=1), torch.full((8,), 4.0))
    assert set((rows_KSD[0] * 4).flatten().tolist()) == {0.0, 1.0}
    assert not torch.equal(rows_KSD[0], rows_KSD[2])
    # Of fewer prompts all are taken.
    assert torch.allclose(rows_KSD[1], torch.tensor([1 / 3] * 3 + [0.0] * 3).expand(8, 6))


def test_prompts_that_are_kept_are_spread_evenly():
    many = torch.arange(1000.0)[:, None]
    kept = kept_prompts(many)
    assert len(kept) == 256
    assert (kept[0], kept[-1]) == (0, 999)
    assert kept.diff(dim=0).max() <= 4
    assert torch.equal(kept_prompts(many[:256]), many[:256])


def test_ridge_is_fitted_on_means_of_as_many_prompts_as_it_is_asked_about():
    """Where single prompts scatter far more than tasks do, the mean of few of them tells little, and less than of many.

    A fit on each task's mean over all prompts takes the query's scatter for a difference between tasks.
    """
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(60, 4, generator=random)
    tokens = (centres @ torch.randn(4, 20, generator=random)).view(60, 4, 5)
    prompts = [centre + 4 * torch.randn(200, 4, generator=random) for centre in centres]
    means = torch.stack([prompts_PD.mean(dim=0) for prompts_PD in prompts])
    fields = {"names": tuple(map(str, range(60))), "condition_means": means, "token_means": tokens}
    whole, subsets = Ridge(TaskMeans(**fields)), Ridge(TaskMeans(**fields, prompt_embeddings=prompts))
    among, errors = list(range(50)), {"whole": 0.0, "subsets": 0.0}
    for index in range(50, 60):
        query = prompts[index][:2].mean(dim=0)
        for name, ridge in (("whole", whole), ("subsets", subsets)):
            errors[name] += (ridge.tokens(query, among=among, num_prompts=2) - tokens[index]).square().sum().item()
    assert errors["subsets"] < 0.8 * errors["whole"]


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_few_tasks_are_enough(num_tasks):
    tasks = make_tasks(num_tasks)
    found = ridge_tokens(tasks, tasks.condition_means[0])
    assert torch.isfinite(found).all()
    if num_tasks == 1:
        assert torch.equal(found, tasks.token_means[0])


def test_tasks_of_equal_prompts_get_the_mean():
    tasks = make_tasks(4)
    same = TaskMeans(names=tasks.names, condition_means=torch.ones(4, 3), token_means=tasks.token_means)
    assert torch.allclose(ridge_tokens(same, torch.ones(3)), tasks.token_means.mean(dim=0), atol=1e-5)


def test_ridge_from_a_file_is_ridge_from_memory_and_a_task_left_out_leaves_no_trace(tmp_path, monkeypatch):
    tasks = make_tasks(5, noise=0.1)
    with TaskMeansWriter(tmp_path / TASK_MEANS_NAME, num_tokens=4, token_dim=5) as writer:
        for name, condition, tokens in zip(tasks.names, tasks.condition_means, tasks.token_means, strict=True):
            writer.add(name, condition[None], tokens)
    monkeypatch.setattr(baselines, "_CHUNK_VALUES", 60)  # more than one slice
    centred = (tasks.token_means - tasks.token_means.mean(dim=0)).flatten(1).double()
    assert torch.allclose(gram_of(tasks.token_means), centred @ centred.T, atol=1e-4)
    query = torch.tensor([0.1, 0.2, 0.3])
    expected = ridge_tokens(tasks, query, without=2)
    assert torch.allclose(ridge_tokens(read_task_means(tmp_path / "x"), query, without=2), expected, atol=1e-5)
    wild = tasks.token_means.clone()
    wild[2] = 50.0
    changed = TaskMeans(names=tasks.names, condition_means=tasks.condition_means, token_means=wild)
    assert torch.allclose(ridge_tokens(changed, query, without=2), expected, atol=1e-3)

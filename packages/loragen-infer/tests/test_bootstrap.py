"""Bootstrap intervals: that they cover, that rows are paired, and that memory and seeds behave."""

import numpy as np
import pytest
from loragen_infer.evaluation import bootstrap
from loragen_infer.evaluation.bootstrap import interval_of, mean_of, sums_of
from scipy.stats import t


def sampled(values, *, seed=0, num_resamples=2000):
    values = np.asarray(values, dtype=float)
    return sums_of(values[:, None], num_resamples=num_resamples, seed=[seed])[:, 0] / len(values)


def test_the_interval_of_a_mean_is_the_textbook_s():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    low, high = interval_of(sampled(values, num_resamples=20_000))
    standard_error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.01)
    assert high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.01)


def test_nineteen_intervals_of_twenty_hold_the_truth():
    draw = np.random.default_rng(2)
    draws = [sampled(draw.exponential(1.0, size=100), seed=i, num_resamples=400) for i in range(400)]
    covered = np.mean([low <= 1.0 <= high for low, high in map(interval_of, draws)])
    assert 0.90 <= covered <= 0.97


def test_a_difference_is_paired():
    examples = np.random.default_rng(3).normal(0.0, 10.0, size=50)
    better = examples - 1.0 + 0.01 * np.random.default_rng(4).normal(size=50)
    parts = sums_of(np.stack([examples, better], axis=1), num_resamples=1000, seed=[0]).T / 50
    # Each is known to within several units, their difference to within a hundredth.
    assert np.ptp(interval_of(parts[0])) > 4
    assert np.ptp(interval_of(parts[1] - parts[0])) < 0.02


def test_resamples_do_not_depend_on_the_size_of_a_chunk(monkeypatch):
    values = np.random.default_rng(5).normal(size=(7, 3))
    whole = sums_of(values, num_resamples=100, seed=[1, 2])
    monkeypatch.setattr(bootstrap, "_CHUNK_VALUES", 20)
    assert np.array_equal(sums_of(values, num_resamples=100, seed=[1, 2]), whole)
    assert not np.array_equal(sums_of(values, num_resamples=100, seed=[1, 3]), whole)


def test_every_resample_has_as_many_examples_as_there_are():
    sums = sums_of(np.ones((13, 1)), num_resamples=50, seed=[0])
    assert sums.tolist() == [[13.0]] * 51


def test_the_interval_of_a_mean_over_tasks_is_the_t_interval_of_their_scores():
    draw = np.random.default_rng(6)
    for num_tasks in (5, 12, 60):
        parts = [
            sampled(draw.normal(draw.normal(), 0.5, size=60), seed=i, num_resamples=10_000) for i in range(num_tasks)
        ]
        mean = mean_of(parts, seed=[0])
        scores = np.array([part[0] for part in parts])
        assert mean[0] == pytest.approx(scores.mean())
        half = t.ppf(0.975, num_tasks - 1) * scores.std(ddof=1) / np.sqrt(num_tasks)
        # Of five tasks the means drawn are few, and the farthest is all of the farthest task.
        assert np.ptp(interval_of(mean, num_tasks=num_tasks)) == pytest.approx(
            2 * half, rel=0.25 if num_tasks < 10 else 0.1
        )


def test_of_two_to_four_tasks_there_is_no_interval():
    parts = [sampled([1.0, 2.0, 4.0], seed=i) for i in range(4)]
    assert np.array_equal(mean_of(parts[:1], seed=[0]), parts[0])
    assert [interval_of(mean_of(parts, seed=[0]), num_tasks=count) for count in (2, 3, 4)] == [None] * 3


def test_a_task_that_is_drawn_twice_is_drawn_with_different_examples():
    # All tasks have the same score, so what is left is the scatter of their examples, over 100 tasks with 100 draws.
    parts = [sampled(np.random.default_rng(i).permutation(np.arange(-20.0, 21.0)), seed=i) for i in range(100)]
    scatter = mean_of(parts, seed=[0])[1:].std()
    assert scatter == pytest.approx(np.arange(-20, 21).std() / np.sqrt(41 * 100), rel=0.1)

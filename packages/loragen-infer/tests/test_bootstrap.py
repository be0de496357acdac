"""Bootstrap intervals: that they cover, that rows are paired, and that memory and seeds behave."""

import numpy as np
import pytest
from loragen_infer.evaluation import bootstrap
from loragen_infer.evaluation.bootstrap import Sampled, mean_of, resample_sums


def sampled(values, *, seed=0, num_resamples=2000):
    values = np.asarray(values, dtype=float)
    sums = resample_sums(values[:, None], num_resamples=num_resamples, seed=[seed])[:, 0]
    return Sampled(value=float(values.mean()), resamples=sums / len(values))


def test_the_interval_of_a_mean_is_the_textbook_s():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    low, high = sampled(values, num_resamples=20_000).interval
    standard_error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.01)
    assert high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.01)


def test_nineteen_intervals_of_twenty_hold_the_truth():
    draw = np.random.default_rng(2)
    intervals = [sampled(draw.exponential(1.0, size=100), seed=i, num_resamples=400).interval for i in range(400)]
    covered = np.mean([low <= 1.0 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.97


def test_a_difference_is_paired():
    examples = np.random.default_rng(3).normal(0.0, 10.0, size=50)
    better = examples - 1.0 + 0.01 * np.random.default_rng(4).normal(size=50)
    sums = resample_sums(np.stack([examples, better], axis=1), num_resamples=1000, seed=[0]) / 50
    parts = [Sampled(value=v.mean(), resamples=s) for v, s in zip((examples, better), sums.T, strict=True)]
    # Each is known to within several units, their difference to within a hundredth.
    assert np.ptp(parts[0].interval) > 4
    assert np.ptp((parts[1] - parts[0]).interval) < 0.02


def test_resamples_do_not_depend_on_the_size_of_a_chunk(monkeypatch):
    values = np.random.default_rng(5).normal(size=(7, 3))
    whole = resample_sums(values, num_resamples=100, seed=[1, 2])
    monkeypatch.setattr(bootstrap, "_CHUNK_VALUES", 20)
    assert np.array_equal(resample_sums(values, num_resamples=100, seed=[1, 2]), whole)
    assert not np.array_equal(resample_sums(values, num_resamples=100, seed=[1, 3]), whole)


def test_every_resample_has_as_many_examples_as_there_are():
    sums = resample_sums(np.ones((13, 1)), num_resamples=50, seed=[0])
    assert sums.tolist() == [[13.0]] * 50


def test_the_mean_over_tasks_is_narrower_than_its_parts():
    draw = np.random.default_rng(6)
    parts = [sampled(draw.normal(size=60), seed=i) for i in range(9)]
    mean = mean_of(parts)
    assert mean.value == pytest.approx(np.mean([part.value for part in parts]))
    assert np.ptp(mean.interval) == pytest.approx(np.mean([np.ptp(part.interval) for part in parts]) / 3, rel=0.15)

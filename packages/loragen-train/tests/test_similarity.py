"""Inner products of weight changes against the weight changes themselves, and principal components against an SVD."""

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from lora_tokenizer import read_adapter, write_adapter
from loragen_train.analysis.outliers import find_outliers
from loragen_train.analysis.similarity import cosines, delta_gram, principal_axes, task_gram


def flat_delta(adapter, modules) -> np.ndarray:
    """All weight changes of an adapter in one vector; zeros for a module that it lacks."""
    return np.concatenate(
        [
            adapter.delta_weight(name).double().numpy().ravel() if name in adapter.modules else np.zeros(size)
            for name, size in modules.items()
        ]
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, make):
    """Of several ranks, scalings and numbers of layers."""
    root = tmp_path_factory.mktemp("similarity")
    settings = [{}, {"r": 5}, {"num_layers": 4}, {"use_rslora": True}, {"r": 1, "num_layers": 1}, {"r": 40}]
    made = [make.adapter(seed=number, **changes) for number, changes in enumerate(settings)]
    return [write_adapter(adapter, root / f"checkpoint-{number}") for number, adapter in enumerate(made)]


@pytest.mark.parametrize("block_size", [1, 4, 100])
def test_the_gram_matrix_is_that_of_the_weight_changes_whatever_the_blocks(checkpoints, block_size):
    adapters = [read_adapter(path) for path in checkpoints]
    modules = {name: adapter.delta_weight(name).numel() for adapter in adapters for name in adapter.modules}
    deltas = np.stack([flat_delta(adapter, modules) for adapter in adapters])
    done = []
    gram = delta_gram(checkpoints, read_adapter, block_size=block_size, on_done=lambda: done.append(1))
    np.testing.assert_allclose(gram, deltas @ deltas.T, rtol=1e-6, atol=1e-6 * np.abs(gram).max())
    assert len(done) == len(checkpoints)


@pytest.mark.parametrize(("block_size", "most"), [(1, 3), (100, 6)])
def test_only_two_blocks_are_open_at_a_time(checkpoints, block_size, most):
    opened: weakref.WeakSet = weakref.WeakSet()
    counts = []

    def read(path):
        adapter = read_adapter(path)
        opened.add(adapter)
        counts.append(len(opened))
        return adapter

    delta_gram(checkpoints, read, block_size=block_size)
    # In blocks of one: a block, its partner, and the partner that is read while the former one is still there.
    assert max(counts) == most


def test_another_shape_is_another_module(tmp_path, make):
    paths = [write_adapter(make.adapter(0, width=width), tmp_path / str(width)) for width in (32, 48)]
    gram = delta_gram(paths, read_adapter)
    assert gram[0, 1] == gram[1, 0] == 0
    assert (np.diag(gram) > 0).all()


@given(arrays.arrays(np.float64, st.tuples(st.integers(1, 7), st.integers(1, 9)), elements=st.floats(-9, 9, width=16)))
def test_principal_axes_are_those_of_the_singular_value_decomposition(points):
    centred = points - points.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)
    found, shares = principal_axes(points @ points.T)
    assert found.shape == (len(points), 2)
    norms = np.linalg.norm(found, axis=0)
    expected = np.pad(values, (0, 2))[:2]
    np.testing.assert_allclose(norms, expected, atol=1e-5)
    total = (values**2).sum()
    if total > 1e-6:
        np.testing.assert_allclose(shares, expected**2 / total, atol=1e-6)
    # What lies on two axes is shown as far apart as it is.
    if len(values) < 3 or values[2:].max(initial=0) < 1e-9:
        shown = np.linalg.norm(found[:, None] - found[None], axis=-1)
        np.testing.assert_allclose(shown, np.linalg.norm(points[:, None] - points[None], axis=-1), atol=1e-4)


def test_the_means_of_tasks_and_a_cosine_of_nothing():
    points = np.array([[1.0, 0.0], [3.0, 2.0], [0.0, 4.0], [0.0, 0.0]])
    names, tasks = ["b", "a", "zero"], ["a", "a", "b", "zero"]
    means = np.array([[0.0, 4.0], [2.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(task_gram(points @ points.T, tasks, names), means @ means.T)
    cosine = cosines(means @ means.T)
    assert cosine[0, 1] == pytest.approx(1 / np.sqrt(5))
    assert (cosine[2] == 0).all()


def of(points: list[list[float]], tasks: list[str]) -> dict[int, list[str]]:
    array = np.array(points, dtype=float)
    return find_outliers(array @ array.T, tasks)


def test_each_rule_finds_its_kind_and_the_others_are_left_alone():
    steps = [[10, 0, 0.1 * step] for step in range(6)] + [[0, 10, 0.1 * step] for step in range(6)]
    tasks = ["x"] * 6 + ["y"] * 6
    assert of(steps, tasks) == {}
    assert of([*steps, [0, 0, 0]], [*tasks, "y"])[12][0] == "its weight change is zero"
    (far,) = of([*steps, [40, 0, 0]], [*tasks, "x"]).items()
    assert far[0] == 12
    assert far[1][0].startswith("its norm is 4 times the median of its task")
    (odd,) = of([*steps, [0, 0, 10]], [*tasks, "x"]).items()
    assert odd[0] == 12
    assert odd[1][0].startswith("its distance to the others of its task is 1.")
    (stray,) = of([*steps, [0, 10, 0.2]], [*tasks, "x"]).items()
    assert stray[0] == 12
    assert stray[1][-1] == "it is nearer to the task 'y' than to its own"


@pytest.mark.parametrize("tasks", [["x"], ["x", "y"], ["x", "x"]])
def test_few_checkpoints_are_no_outliers(tasks):
    assert of([[1, 0], [1, 0.1]][: len(tasks)], tasks) == {}

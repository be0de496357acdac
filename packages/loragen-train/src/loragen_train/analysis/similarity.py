"""How alike the weight changes of many checkpoints are: inner products of ΔW, without ever making one.

They come from the thin factors (:mod:`lora_tokenizer.delta`), those of a block of checkpoints at once. Only two blocks
are open at a time; the matrix of inner products (the Gram matrix) is all that grows.

Legend: M checkpoints, T tasks, R ranks of a block one after another, i inputs, o outputs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lora_tokenizer import LoraAdapter, delta_products
from sklearn.decomposition import KernelPCA

__all__ = ["Matrix", "cosines", "delta_gram", "principal_axes", "task_gram"]

Matrix = npt.NDArray[np.float64]


def delta_gram(
    paths: Sequence[Path],
    read: Callable[[Path], LoraAdapter],
    *,
    block_size: int = 16,
    on_done: Callable[[], None] = lambda: None,
) -> Matrix:
    """Return the inner products ``[M, M]`` of the weight changes of all checkpoints, in float64.

    Modules of equal name and shape are compared, whatever their rank; where one checkpoint lacks a module, its change
    there counts as zero. A magnitude of DoRA and a bias are left out. Each checkpoint is read once for every block;
    ``on_done`` is called for each that has been compared with all others.
    """
    gram_MM = np.zeros((len(paths), len(paths)))
    blocks = [slice(start, start + block_size) for start in range(0, len(paths), block_size)]
    for number, left in enumerate(blocks):
        opened = [read(path) for path in paths[left]]
        for right in blocks[number:]:
            others = opened if right == left else [read(path) for path in paths[right]]
            gram_MM[left, right] = _products(opened, others)
            gram_MM[right, left] = gram_MM[left, right].T
        for _ in paths[left]:
            on_done()
    return gram_MM


def _products(left: Sequence[LoraAdapter], right: Sequence[LoraAdapter]) -> Matrix:
    products = np.zeros((len(left), len(right)))
    modules, others = _modules_of(left), _modules_of(right)
    for key in modules.keys() & others.keys():
        a_Ri, b_oR, who_R = _stack(left, key[0], modules[key])
        c_Ri, d_oR, other_R = _stack(right, key[0], others[key])
        np.add.at(products, np.ix_(who_R, other_R), delta_products(a_Ri, b_oR, c_Ri, d_oR).numpy())
    return products


def _modules_of(adapters: Sequence[LoraAdapter]) -> dict[tuple[str, int, int], list[int]]:
    """Name, inputs and outputs of every module, and the adapters that have it."""
    found: dict[tuple[str, int, int], list[int]] = {}
    for index, adapter in enumerate(adapters):
        for module in adapter.modules:
            a_ri, b_or = adapter.factors(module)
            found.setdefault((module, a_ri.shape[1], b_or.shape[0]), []).append(index)
    return found


def _stack(
    adapters: Sequence[LoraAdapter], module: str, members: list[int]
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """The factors of one module of several adapters, the scaling in B; and which adapter each rank is of."""
    factors = [(index, adapters[index].scaling(module), *adapters[index].factors(module)) for index in members]
    a_Ri = torch.cat([a_ri.double() for _, _, a_ri, _ in factors])
    b_oR = torch.cat([scaling * b_or.double() for _, scaling, _, b_or in factors], dim=1)
    return a_Ri, b_oR, [index for index, _, a_ri, _ in factors for _ in a_ri]


def cosines(gram: Matrix) -> Matrix:
    """Return the cosines that belong to inner products; that with a vector of zeros is 0.

    Example:
        >>> cosines(np.array([[4.0, 3.0], [3.0, 9.0]])).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    norms = np.sqrt(np.diag(gram))
    products = np.outer(norms, norms)
    cosine: Matrix = np.clip(gram / np.where(products > 0, products, 1.0), -1.0, 1.0)
    return cosine


def task_gram(gram_MM: Matrix, tasks: Sequence[str], names: Sequence[str]) -> Matrix:
    """Return the inner products ``[T, T]`` of the tasks' mean weight changes, in the order of ``names``."""
    share_TM = np.array([[float(task == name) for task in tasks] for name in names])
    share_TM /= share_TM.sum(axis=1, keepdims=True)
    means: Matrix = share_TM @ gram_MM @ share_TM.T
    return means


def principal_axes(gram_MM: Matrix, num_axes: int = 2) -> tuple[Matrix, list[float]]:
    """Return coordinates ``[M, num_axes]`` on the main axes of the centred points, and the share of variance of each.

    Principal component analysis through the Gram matrix; of fewer points than axes the other axes are zero.
    """
    points, shares = np.zeros((len(gram_MM), num_axes)), np.zeros(num_axes)
    total = float(np.trace(gram_MM) - gram_MM.sum() / len(gram_MM))
    # Below round-off nothing varies, and there are no axes to be found.
    if total > 1e-12 * np.trace(gram_MM):
        axes = KernelPCA(num_axes, kernel="precomputed", eigen_solver="dense")
        found = axes.fit_transform(gram_MM)
        points[:, : found.shape[1]] = found
        shares[: found.shape[1]] = axes.eigenvalues_ / total
    return points, shares.tolist()

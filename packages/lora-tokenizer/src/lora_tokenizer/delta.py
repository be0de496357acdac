"""Inner products of weight changes ΔW = B @ A, from their thin factors: no `[out, in]` matrix is ever made.

`<B A, D C> = tr(A^T B^T D C) = sum of (B^T D) * (A C^T)`, whose matrices are as large as the ranks. It does not depend
on how a change is split into factors, as a comparison of A and B would. Scalings are the caller's: they multiply.

Axes: r and s ranks, i inputs, o outputs; any axes before them are batches.
"""

from __future__ import annotations

from torch import Tensor


def delta_products(a_ri: Tensor, b_or: Tensor, c_si: Tensor, d_os: Tensor) -> Tensor:
    """Inner products `[..., r, s]` of every rank-one part of `B @ A` with every one of `D @ C`.

    Factors of several adapters, one after the other along the ranks, give all products at once: sum the blocks.
    """
    return (b_or.mT @ d_os) * (a_ri @ c_si.mT)


def delta_inner(a_ri: Tensor, b_or: Tensor, c_si: Tensor, d_os: Tensor) -> Tensor:
    """The inner product `[...]` of the weight changes `B @ A` and `D @ C`, in the dtype of the factors.

    >>> import torch
    >>> a, b, c, d = torch.ones(1, 2), torch.ones(3, 1), torch.ones(2, 2), torch.ones(3, 2)
    >>> delta_inner(a, b, c, d).item(), ((b @ a) * (d @ c)).sum().item()
    (12.0, 12.0)
    """
    return delta_products(a_ri, b_or, c_si, d_os).sum(dim=(-2, -1))

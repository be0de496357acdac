"""The canonical form of LoRA factors: one pair (A, B) for every pair with the same product.

`B @ A` does not change under `B -> B M, A -> M^-1 A` with any invertible r x r matrix M, so two checkpoints that act
alike may hold quite different numbers. With `B = Q_b R_b`, `A^T = Q_a R_a` and the SVD `R_b R_a^T = U S V^T` the
factors `B' = Q_b U S^(1/2)` and `A' = S^(1/2) (Q_a V)^T` have the same product, are balanced (`B'^T B' = A' A'^T =
S`), ordered by singular value, and unique up to the sign of each component; the entry of largest magnitude in each
column of B' is made positive. Equal singular values leave a rotation open, which no convention can fix.

Axes: M modules of equal shape, r rank, i inputs, o outputs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lora_tokenizer.adapter import LoraAdapter
from lora_tokenizer.names import join_name


def canonical_form(adapter: LoraAdapter) -> LoraAdapter:
    """The adapter with every A and B in canonical form, in the dtypes it had; other tensors are shared.

    Modules of equal shape are computed together, in float64, so `B @ A` changes by the round-off of the stored dtype
    only. With fewer independent directions than r, the last rows of A' and columns of B' are zero.
    """
    groups: dict[tuple[torch.Size, torch.Size], list[str]] = {}
    for module in adapter.modules:
        a_ri, b_or = adapter.factors(module)
        groups.setdefault((a_ri.shape, b_or.shape), []).append(module)
    tensors = dict(adapter.tensors)
    for modules in groups.values():
        pairs = [adapter.factors(module) for module in modules]
        a_Mri = torch.stack([a.double() for a, _ in pairs])
        b_Mor = torch.stack([b.double() for _, b in pairs])
        new_a_Mri, new_b_Mor = canonical_factors(a_Mri, b_Mor)
        for index, module in enumerate(modules):
            is_embedding = join_name(module, "lora_embedding_A") in tensors
            name_a, name_b = (
                ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
            )
            for part, new in ((name_a, new_a_Mri[index]), (name_b, new_b_Mor[index])):
                name = join_name(module, part)
                tensors[name] = new.to(tensors[name].dtype)
    return replace(adapter, tensors=tensors)


def canonical_factors(a_Mri: Tensor, b_Mor: Tensor) -> tuple[Tensor, Tensor]:
    """Canonical `(A, B)` of a batch of factor pairs `[M, r, i]` and `[M, o, r]`."""
    rank = a_Mri.shape[-2]
    q_a_Mik, r_a_Mkr = torch.linalg.qr(a_Mri.mT)
    q_b_Mok, r_b_Mkr = torch.linalg.qr(b_Mor)
    u_Mkc, s_Mc, vt_Mck = torch.linalg.svd(r_b_Mkr @ r_a_Mkr.mT, full_matrices=False)
    root_Mc = s_Mc.sqrt()
    new_b_Moc = (q_b_Mok @ u_Mkc) * root_Mc.unsqueeze(-2)
    new_a_Mci = root_Mc.unsqueeze(-1) * (vt_Mck @ q_a_Mik.mT)
    largest_M1c = new_b_Moc.abs().argmax(dim=-2, keepdim=True)
    sign_M1c = torch.where(new_b_Moc.gather(-2, largest_M1c) < 0, -1.0, 1.0).to(new_b_Moc.dtype)
    new_b_Moc, new_a_Mci = new_b_Moc * sign_M1c, new_a_Mci * sign_M1c.mT
    missing = rank - s_Mc.shape[-1]  # a rank above the number of inputs or outputs
    if missing:
        new_b_Moc = torch.nn.functional.pad(new_b_Moc, (0, missing))
        new_a_Mci = torch.nn.functional.pad(new_a_Mci, (0, 0, 0, missing))
    return new_a_Mci, new_b_Moc

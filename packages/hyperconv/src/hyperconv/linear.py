"""The expander that starts as ridge regression: decides what stays of that start, and what training adds to it.

Without a memory of the training tasks everything is learned on. With one, the start stays: prompts that are recognised
as a training task's give that task's own tokens, all others those of the regression, or others that are given for them,
and, added to them, corrections.

Legend: B batch, D condition_dim, C hidden_dim, K num_basis, L layers, H tokens per layer, W output_dim, N = L·H tokens,
T training tasks, R patterns that a start sets, S rows of a task.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyperconv.condition import check_embeddings
from hyperconv.config import GeneratorConfig
from hyperconv.directions import PromptDirections
from hyperconv.errors import HyperConvError
from hyperconv.expanders import init_normal, make_lift, make_position, to_blocks
from hyperconv.layers.conv import Factory
from hyperconv.memory import TaskMemory
from hyperconv.ridge import LeftOutFit, RidgeFit

__all__ = ["Expanded", "LeftOut", "LinearExpander"]

_CHUNK_VALUES = 1 << 22
# Of the patterns that are mixed, all together, in that which is always added: how much faster training moves them.
_SHARE = 2.0
# Of features that no ridge regression has set, in their units.
_SMALL = 0.1


class Expanded(NamedTuple):
    """What a `LinearExpander` makes of a condition."""

    to_blocks_BLHC: Tensor | None
    """The input of the blocks; None where there are none."""
    tokens_BLHW: Tensor
    """The tokens, before what blocks add."""
    novelty_B: Tensor | None
    """How far the prompts are not recognised, from 0 to 1: the share of what blocks add that counts; None:
    all of it."""


class LinearExpander(nn.Module):
    """`x[l, h, :] = offset[l, h, :] + strength · sum_k f_k(c - center) · basis[k, l, h, :]` with linear features f.

    The features are neither shifted nor normed, so the tokens are linear in c, the mean of the prompts' embeddings: a c
    at the center, which is like no task more than another, gives the offset.

    With a memory (`num_tasks`) of which the prompts are recognised by a share g, the features are
    `(1 - g) · strength · f + g · own` with the features that give the task's own tokens, and `(1 - g) · gain ·
    (shared + sum_r 2 d_r / R · corrections[r])` is added, with d the places of the prompts along the directions in
    which those of the training tasks differ. Then these two and strength are all that learns here, and of a start that
    is given tokens for unseen tasks, which `shared` holds, only the corrections and strength, unless it is said that
    these tokens are learned too.
    """

    center: Tensor
    own_TK: Tensor

    def __init__(self, config: GeneratorConfig, factory: Factory) -> None:
        super().__init__()
        D, K, W = config.condition_dim, config.num_basis, config.output_dim
        self.register_buffer("center", torch.zeros(D, device=factory["device"], dtype=torch.float32))
        self.features = nn.Linear(D, K, bias=False, **factory)
        self.basis = nn.Parameter(torch.zeros(K, *config.grid, W, **factory))
        self.offset = nn.Parameter(torch.zeros(*config.grid, W, **factory))
        self.strength = nn.Parameter(torch.ones((), **factory))
        self.has_blocks = config.num_hyperconv_blocks > 0
        self.lift = make_lift(config, factory) if self.has_blocks else None
        self.position = make_position(config, factory) if self.has_blocks else None
        self.feature_scale = config.feature_scale
        # So large are features then of embeddings of length 1, as after `start_from`.
        init_normal(self.features.weight, std=self.feature_scale)
        self.memory: TaskMemory | None = None
        self.directions: PromptDirections | None = None
        self.shared: nn.Parameter | None = None
        self.corrections: nn.Parameter | None = None
        if config.num_tasks:
            self.memory = TaskMemory(config.num_tasks, D, device=factory["device"])
            own_TK = torch.zeros(config.num_tasks, K, device=factory["device"], dtype=torch.float32)
            self.register_buffer("own_TK", own_TK)
            self.correction_gain = config.correction_gain
            self.directions = PromptDirections(config.num_corrections, D, device=factory["device"])
            self.shared = nn.Parameter(torch.zeros(*config.grid, W, **factory))
            self.corrections = nn.Parameter(torch.zeros(config.num_corrections, *config.grid, W, **factory))
            for parameter in (self.features.weight, self.basis, self.offset):
                parameter.requires_grad_(False)

    def forward(
        self,
        condition_BD: Tensor,
        num_prompts_B: Tensor,
        features_BK: Tensor | None = None,
        shift_BNW: Tensor | None = None,
    ) -> Expanded:
        """Expand the means [B, D] of so many embeddings; where given, with `features_BK` in place of those of the
        means, and with `shift_BNW` added to the offset."""
        is_given = features_BK is not None
        if features_BK is None:
            # Subtracted in float32: in bfloat16 little is left of a difference of like embeddings.
            features_BK = self.features((condition_BD - self.center.float()).to(self.features.weight.dtype))
        features_BK = features_BK.to(self.basis.dtype)
        mixed_BK, novelty_B = features_BK * self.strength, None
        if self.memory is not None and not is_given:
            known_BT = self.memory(condition_BD, num_prompts_B)
            novelty_B = (1 - known_BT.sum(dim=1)).to(self.basis.dtype)
            own_BK = (known_BT @ self.own_TK.float()).to(self.basis.dtype)
            mixed_BK = mixed_BK * novelty_B[:, None] + own_BK
        # One product that writes into the only copy of the grid.
        offset_V = self.offset.flatten()
        offset_BV = offset_V if shift_BNW is None else offset_V + shift_BNW.flatten(1).to(offset_V.dtype)
        tokens_BV = torch.addmm(offset_BV, mixed_BK, self.basis.flatten(1))
        if self.directions is not None and self.shared is not None and self.corrections is not None:
            gain_B = self.correction_gain * (features_BK.new_ones(len(features_BK)) if novelty_B is None else novelty_B)
            tokens_BV = torch.addr(tokens_BV, gain_B, self.shared.flatten())
            mixing_BR = gain_B[:, None] * self.directions(condition_BD).to(gain_B.dtype)
            share = _SHARE / max(1, mixing_BR.shape[1])
            tokens_BV = torch.addmm(tokens_BV, mixing_BR * share, self.corrections.flatten(1))
        tokens_BLHW = tokens_BV.view(-1, *self.offset.shape)
        blocks_BLHC = to_blocks(tokens_BLHW, self.lift, self.position) if self.has_blocks else None
        return Expanded(blocks_BLHC, tokens_BLHW, novelty_B)

    @torch.no_grad()
    def start_from(
        self,
        fit: RidgeFit,
        token_means_TNW: Tensor,
        prompts: Sequence[Tensor] | None = None,
        others: Sequence[Tensor] = (),
        unseen_NW: Tensor | None = None,
        *,
        learns_unseen: bool = False,
    ) -> None:
        """Become a ridge regression, see `HyperConvGenerator.start_from`."""
        self._check(fit, token_means_TNW, unseen_NW)
        num_tasks, num_basis = len(token_means_TNW), len(self.basis)
        rank = min(num_basis, num_tasks - 1)
        offset_NW, basis_KNW = self.offset.flatten(0, 1), self.basis.flatten(1, 2)
        width = offset_NW.shape[1]
        step = max(1, _CHUNK_VALUES // (num_tasks * width))
        chunks = [slice(start, start + step) for start in range(0, len(offset_NW), step)]
        gram_TT = torch.zeros(num_tasks, num_tasks, dtype=torch.float64, device=offset_NW.device)
        for chunk in chunks:
            part_TV = token_means_TNW[:, chunk].to(gram_TT).flatten(1)
            part_TV = part_TV - part_TV.mean(0)
            gram_TT += part_TV @ part_TV.T
        if not bool(torch.isfinite(gram_TT).all()):
            shape = list(token_means_TNW.shape)
            raise HyperConvError(f"token means of shape {shape} hold NaN or infinite values, expected finite numbers.")
        # Those come last along which the tasks vary most. With U them and M the centred means, the right factors of the
        # SVD times their singular values are Uᵀ M, so that nothing is divided by a singular value that may be zero.
        directions_TR = torch.linalg.eigh(gram_TT).eigenvectors.flip(1)[:, :rank]
        # Over the rows of the fit. Adam moves all weights at one speed, so larger features move the tokens faster.
        scale = (fit.spread * (num_tasks / max(1, rank)) ** 0.5 or 1.0) / self.feature_scale
        for chunk in chunks:
            part_TnW = token_means_TNW[:, chunk].to(gram_TT)
            offset_NW[chunk] = part_TnW.mean(0).to(offset_NW)
            part_RnW = torch.tensordot(scale * directions_TR.T, part_TnW - part_TnW.mean(0), dims=1)
            basis_KNW[:rank, chunk] = part_RnW.to(basis_KNW)
        basis_KNW[rank:] = 0
        weight_KD = self.features.weight
        weight_KD[:rank] = (directions_TR.T @ fit.weights_KD.to(gram_TT) / scale).to(weight_KD)
        weight_KD[rank:].normal_(std=_SMALL * self.feature_scale)
        self.center.copy_(fit.center_D)
        self.strength.fill_(1.0)
        if self.memory is not None:
            if prompts is None:
                raise HyperConvError(f"prompts are missing, expected those of num_tasks={num_tasks} tasks to remember.")
            self.memory.fit(prompts)
            self.own_TK.zero_()[:, :rank] = (directions_TR / scale).to(self.own_TK)
            if self.directions is not None:
                for prompts_PD in others:
                    check_embeddings(prompts_PD, len(self.center))
                self.directions.fit(torch.stack([prompts_PD.mean(0) for prompts_PD in [*prompts, *others]]))
        if self.shared is not None and self.corrections is not None:
            nn.init.zeros_(self.shared)
            nn.init.zeros_(self.corrections)
            if unseen_NW is not None:
                from_offset_NW = unseen_NW.to(offset_NW.device, torch.float32) - offset_NW.float()
                self.shared.copy_(from_offset_NW.reshape(self.offset.shape) / self.correction_gain)
                self.strength.zero_()
            # What all tasks share was learned before where it is given: more of it fits the training tasks alone.
            self.shared.requires_grad_(unseen_NW is None or learns_unseen)

    @torch.no_grad()
    def leave_out(self, fits: Iterable[LeftOutFit]) -> "LeftOut":
        """The features that the regressions without one task and its relatives, in the order of the tasks, would give.

        Raises:
            HyperConvError: the network remembers no tasks, or the fits are not as many.
        """
        if self.memory is None:
            raise HyperConvError("num_tasks is 0, expected a network that remembers its tasks to leave one out.")
        return LeftOut(self, list(fits))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        corrections = state_dict.get(f"{prefix}corrections")
        if self.directions is not None and corrections is not None and f"{prefix}shared" not in state_dict:
            # The first was once the shared one.
            state_dict[f"{prefix}shared"], corrections = corrections[0], corrections[1:]
            state_dict[f"{prefix}corrections"] = corrections
            if f"{prefix}directions.limit" not in state_dict:
                # Before there were directions, the first features of the start mixed them; no more than it had.
                num_mixed, num_now = len(corrections), len(self.directions.axes_RD)
                axes_RD = state_dict[f"{prefix}features.weight"][:num_mixed].float() / self.feature_scale
                axes_RD = axes_RD * (num_now / max(1, num_mixed) / _SHARE)
                state_dict[f"{prefix}directions.axes_RD"] = nn.functional.pad(axes_RD, (0, 0, 0, num_now - num_mixed))
                state_dict[f"{prefix}directions.center_D"] = state_dict[f"{prefix}center"]
                state_dict[f"{prefix}directions.limit"] = torch.tensor(float("inf"), dtype=torch.float32)
                missing = corrections.new_zeros(num_now - num_mixed, *corrections.shape[1:])
                state_dict[f"{prefix}corrections"] = torch.cat([corrections, missing])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check(self, fit: RidgeFit, token_means_TNW: Tensor, unseen_NW: Tensor | None) -> None:
        L, H, W = self.offset.shape
        num_tasks, condition_dim = fit.weights_KD.shape
        if condition_dim != len(self.center):
            raise HyperConvError(
                f"fit is of embeddings of length {condition_dim}, expected condition_dim={len(self.center)}."
            )
        shape = list(token_means_TNW.shape)
        if shape != [num_tasks, L * H, W]:
            raise HyperConvError(
                f"token means have shape {shape}, expected {[num_tasks, L * H, W]} for a fit of {num_tasks} task(s)."
            )
        if unseen_NW is None:
            return
        if self.shared is None:
            raise HyperConvError("num_tasks is 0, expected a network that remembers its tasks to tell unseen ones.")
        if unseen_NW.shape != (L * H, W) or not unseen_NW.isfinite().all():
            raise HyperConvError(
                f"tokens for unseen tasks have shape {list(unseen_NW.shape)}, expected {[L * H, W]} finite numbers."
            )


class LeftOut(nn.Module):
    """Features of a task's prompts as if it and its relatives were not in the regression: what a task never seen gets.

    Args:
        expander: it has started from the regression on all tasks.
        fits: for each task the regression on those that are no relatives of it (`left_out_fits`).
    """

    center_TD: Tensor
    weight_TKD: Tensor
    bias_TK: Tensor

    def __init__(self, expander: LinearExpander, fits: Sequence[LeftOutFit]) -> None:
        super().__init__()
        own_TK = expander.own_TK
        num_tasks = len(own_TK)
        if len(fits) != num_tasks:
            raise HyperConvError(f"fits are {len(fits)}, expected one for each of {num_tasks} tasks.")
        others_TT = torch.stack([fit.start_K for fit in fits]).to(own_TK)
        # The last is that of tasks that the regression knows nothing of: the regression itself.
        centers = [*(fit.center_D for fit in fits), expander.center]
        weights = [
            *(own_TK.T @ fit.weights_KD.to(own_TK) for fit in fits),
            expander.features.weight.detach().float(),
        ]
        self.register_buffer("center_TD", torch.stack(centers).to(own_TK), persistent=False)
        self.register_buffer("weight_TKD", torch.stack(weights), persistent=False)
        self.register_buffer("bias_TK", nn.functional.pad(others_TT @ own_TK, (0, 0, 0, 1)), persistent=False)

    def forward(self, condition_BD: Tensor, task_B: Tensor) -> Tensor:
        """Features [B, K] for the mean embeddings [B, D] of tasks by number; -1 is a task that the fit never saw."""
        from_center_BD = condition_BD.float() - self.center_TD[task_B]
        features_BK: Tensor = torch.einsum("bkd,bd->bk", self.weight_TKD[task_B], from_center_BD) + self.bias_TK[task_B]
        return features_BK

"""From a condition to a grid of tokens: decides where the network keeps what differs from token to token.

Legend: B batch, D condition_dim, C hidden_dim, K num_basis, L layers, H tokens per layer, W output_dim, N = L·H tokens,
T training tasks, R patterns that a start sets.
Convolutions share their weights over all positions, so they cannot hold one pattern per token and task;
a basis has weights of its own for every token and holds K of them, which the condition mixes.
Every expander returns the grid that goes on through the network, and what is added to its output, if anything.
"""

import torch
from torch import Tensor, nn

from hyperconv.config import GeneratorConfig
from hyperconv.errors import HyperConvError
from hyperconv.layers.conv import Factory
from hyperconv.ridge import RidgeFit

__all__ = ["BasisExpander", "BroadcastExpander", "LinearExpander", "PositionEmbedding"]

_CHUNK_VALUES = 1 << 22
# Of features that no ridge regression has set, in their units.
_SMALL = 0.1


class PositionEmbedding(nn.Module):
    """A learned vector per layer plus one per place within the layer, [L, H, C]."""

    def __init__(self, config: GeneratorConfig, factory: Factory) -> None:
        super().__init__()
        L, H = config.grid
        self.layer = nn.Parameter(torch.empty(L, 1, config.hidden_dim, **factory))
        self.slot = nn.Parameter(torch.empty(1, H, config.hidden_dim, **factory))
        nn.init.normal_(self.layer, std=0.02)
        nn.init.normal_(self.slot, std=0.02)

    def forward(self) -> Tensor:
        """The embeddings of the whole grid."""
        return self.layer + self.slot


class LinearExpander(nn.Module):
    """`x[l, h, :] = offset[l, h, :] + strength · sum_k f_k(c - center) · basis[k, l, h, :]` with linear features f.

    The features are neither shifted nor normed, so the tokens are linear in c, the mean of the prompts' embeddings: a c
    at the center, which is like no task more than another, gives the offset.
    """

    center: Tensor

    def __init__(self, config: GeneratorConfig, factory: Factory) -> None:
        super().__init__()
        D, K, W = config.condition_dim, config.num_basis, config.output_dim
        self.register_buffer("center", torch.zeros(D, device=factory["device"], dtype=torch.float32))
        self.features = nn.Linear(D, K, bias=False, **factory)
        self.basis = nn.Parameter(torch.zeros(K, *config.grid, W, **factory))
        self.offset = nn.Parameter(torch.zeros(*config.grid, W, **factory))
        self.strength = nn.Parameter(torch.ones((), **factory))
        self.has_blocks = config.num_hyperconv_blocks > 0
        self.lift = _make_lift(config, factory) if self.has_blocks else None
        self.position = _make_position(config, factory) if self.has_blocks else None
        self.feature_scale = config.feature_scale
        # So large are features then of embeddings of length 1, as after `start_from`.
        nn.init.normal_(self.features.weight, std=self.feature_scale)

    def forward(self, condition_BD: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, D] to the input of the blocks [B, L, H, C] and the tokens [B, L, H, W]; without blocks to these only."""
        # Subtracted in float32: in bfloat16 little is left of a difference of like embeddings.
        f_BK = self.features((condition_BD - self.center.float()).to(self.features.weight.dtype)) * self.strength
        # One product that writes into the only copy of the grid.
        tokens_BV = torch.addmm(self.offset.flatten(), f_BK, self.basis.flatten(1))
        tokens_BLHW = tokens_BV.view(-1, *self.offset.shape)
        if not self.has_blocks:
            return tokens_BLHW, None
        return _to_blocks(tokens_BLHW, self.lift, self.position), tokens_BLHW

    @torch.no_grad()
    def start_from(self, fit: RidgeFit, token_means_TNW: Tensor) -> None:
        """Become a ridge regression, see `HyperConvGenerator.start_from`."""
        self._check(fit, token_means_TNW)
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

    def _check(self, fit: RidgeFit, token_means_TNW: Tensor) -> None:
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


class BasisExpander(nn.Module):
    """`x[l, h, :] = gain · sum_k f_k(c) · basis[k, l, h, :]` with features f of unit mean square."""

    def __init__(self, config: GeneratorConfig, factory: Factory) -> None:
        super().__init__()
        C, K, W = config.hidden_dim, config.num_basis, config.output_dim
        self.skip = config.expander_skip
        self.gain = config.basis_gain
        self.features = nn.Linear(C, K, **factory)
        self.basis = nn.Parameter(torch.zeros(K, *config.grid, W, **factory))
        self.lift = _make_lift(config, factory)
        self.position = _make_position(config, factory)

    def forward(self, condition_BC: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, C] to the input of the blocks [B, L, H, C] and, with the skip, what reaches the output [B, L, H, W]."""
        f_BK = self.features(condition_BC)
        f_BK = nn.functional.layer_norm(f_BK, f_BK.shape[-1:]) * self.gain
        mixed_BLHW = (f_BK @ self.basis.flatten(1)).view(-1, *self.basis.shape[1:])
        return _to_blocks(mixed_BLHW, self.lift, self.position), mixed_BLHW if self.skip else None


class BroadcastExpander(nn.Module):
    """Every position starts from the same condition; only its position embedding sets a token apart."""

    def __init__(self, config: GeneratorConfig, factory: Factory) -> None:
        super().__init__()
        self.grid = config.grid
        self.position = _make_position(config, factory)

    def forward(self, condition_BC: Tensor) -> tuple[Tensor, None]:
        """[B, C] to the input of the blocks [B, L, H, C]; nothing goes past them."""
        x_BLHC = condition_BC[:, None, None, :].expand(-1, *self.grid, -1)
        return (x_BLHC if self.position is None else x_BLHC + self.position()), None


def _make_lift(config: GeneratorConfig, factory: Factory) -> nn.Linear | None:
    same = config.output_dim == config.hidden_dim
    return None if same else nn.Linear(config.output_dim, config.hidden_dim, **factory)


def _make_position(config: GeneratorConfig, factory: Factory) -> PositionEmbedding | None:
    return PositionEmbedding(config, factory) if config.position_embedding else None


def _to_blocks(tokens_BLHW: Tensor, lift: nn.Linear | None, position: PositionEmbedding | None) -> Tensor:
    """Tokens [B, L, H, W] to the input of the blocks [B, L, H, C]."""
    x_BLHC = tokens_BLHW if lift is None else lift(tokens_BLHW)
    return x_BLHC if position is None else x_BLHC + position()

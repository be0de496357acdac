"""From a condition to a grid of tokens: decides where the network keeps what differs from token to token.

Legend: B batch, D condition_dim, C hidden_dim, K num_basis, L layers, H tokens per layer, W output_dim.
Convolutions share their weights over all positions, so they cannot hold one pattern per token and task;
a basis has weights of its own for every token and holds K of them, which the condition mixes.
Both expanders here return the grid that goes on through the network, and what is added to its output, if anything; the
one that starts as ridge regression is in `hyperconv.linear`.
"""

import torch
from torch import Tensor, nn

from hyperconv.config import GeneratorConfig
from hyperconv.layers.conv import Factory

__all__ = [
    "BasisExpander",
    "BroadcastExpander",
    "PositionEmbedding",
    "init_normal",
    "make_lift",
    "make_position",
    "to_blocks",
]


class PositionEmbedding(nn.Module):
    """A learned vector per layer plus one per place within the layer, [L, H, C]."""

    def __init__(self, config: GeneratorConfig, factory: Factory) -> None:
        super().__init__()
        L, H = config.grid
        self.layer = nn.Parameter(torch.empty(L, 1, config.hidden_dim, **factory))
        self.slot = nn.Parameter(torch.empty(1, H, config.hidden_dim, **factory))
        init_normal(self.layer, std=0.02)
        init_normal(self.slot, std=0.02)

    def forward(self) -> Tensor:
        """The embeddings of the whole grid."""
        return self.layer + self.slot


class BasisExpander(nn.Module):
    """`x[l, h, :] = gain · sum_k f_k(c) · basis[k, l, h, :]` with features f of unit mean square."""

    def __init__(self, config: GeneratorConfig, factory: Factory) -> None:
        super().__init__()
        C, K, W = config.hidden_dim, config.num_basis, config.output_dim
        self.skip = config.expander_skip
        self.gain = config.basis_gain
        self.features = nn.Linear(C, K, **factory)
        self.basis = nn.Parameter(torch.zeros(K, *config.grid, W, **factory))
        self.lift = make_lift(config, factory)
        self.position = make_position(config, factory)

    def forward(self, condition_BC: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, C] to the input of the blocks [B, L, H, C] and, with the skip, what reaches the output [B, L, H, W]."""
        f_BK = self.features(condition_BC)
        f_BK = nn.functional.layer_norm(f_BK, f_BK.shape[-1:]) * self.gain
        mixed_BLHW = (f_BK @ self.basis.flatten(1)).view(-1, *self.basis.shape[1:])
        return to_blocks(mixed_BLHW, self.lift, self.position), mixed_BLHW if self.skip else None


class BroadcastExpander(nn.Module):
    """Every position starts from the same condition; only its position embedding sets a token apart."""

    def __init__(self, config: GeneratorConfig, factory: Factory) -> None:
        super().__init__()
        self.grid = config.grid
        self.position = make_position(config, factory)

    def forward(self, condition_BC: Tensor) -> tuple[Tensor, None]:
        """[B, C] to the input of the blocks [B, L, H, C]; nothing goes past them."""
        x_BLHC = condition_BC[:, None, None, :].expand(-1, *self.grid, -1)
        return (x_BLHC if self.position is None else x_BLHC + self.position()), None


def init_normal(weight: Tensor, *, std: float) -> None:
    """Fill ``weight`` with normal values; one without storage is left alone."""
    # For a tensor on "meta" torch would import its compiler first, which takes more than a second.
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)


def make_lift(config: GeneratorConfig, factory: Factory) -> nn.Linear | None:
    """From tokens to the width of the blocks; None where that is the same."""
    same = config.output_dim == config.hidden_dim
    return None if same else nn.Linear(config.output_dim, config.hidden_dim, **factory)


def make_position(config: GeneratorConfig, factory: Factory) -> PositionEmbedding | None:
    """The position embedding, where one is wanted."""
    return PositionEmbedding(config, factory) if config.position_embedding else None


def to_blocks(tokens_BLHW: Tensor, lift: nn.Linear | None, position: PositionEmbedding | None) -> Tensor:
    """Tokens [B, L, H, W] to the input of the blocks [B, L, H, C]."""
    x_BLHC = tokens_BLHW if lift is None else lift(tokens_BLHW)
    return x_BLHC if position is None else x_BLHC + position()

"""The whole network, from condition embeddings to tokens: decides how its parts are joined and how it starts.

Legend: B tasks in the batch, P prompts, T token states, D condition_dim, C hidden_dim, K num_basis,
L layers, H tokens per layer, N = L·H tokens, W output_dim.
"""

import torch
from torch import Tensor, nn

from hyperconv.checks import check_condition
from hyperconv.condition import ConditionEncoder
from hyperconv.config import GeneratorConfig
from hyperconv.expander import make_expander
from hyperconv.layers.decoder import HyperConvDecoder

__all__ = ["HyperConvGenerator"]


class HyperConvGenerator(nn.Module):
    """Condition embeddings to tokens: input projection, sequence expander, HyperConv blocks, output projection.

    A fresh network answers every condition with (nearly) zero, which in z-scored tokens is the mean adapter.

    Args:
        config: the options; every one has a default.
        device, dtype: where and how the parameters are made ("meta" makes none).

    Raises:
        HyperConvError: in `forward`, a condition or mask of the wrong shape or dtype, without prompts, with NaN or
            infinite values, or all false in a row. What depends on values is not checked inside compiled or exported
            graphs.

    >>> generator = HyperConvGenerator(GeneratorConfig(condition_dim=8, hidden_dim=16, grid=(4, 3), output_dim=10))
    >>> generator(torch.randn(2, 5, 8)).shape
    torch.Size([2, 12, 10])
    >>> mask_BP = torch.tensor([[True] * 5, [True, True, False, False, False]])
    >>> generator(torch.randn(2, 5, 8), mask_BP).shape
    torch.Size([2, 12, 10])
    """

    def __init__(
        self,
        config: GeneratorConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.condition_encoder = ConditionEncoder(config, device=device, dtype=dtype)
        self.expander = make_expander(config, device=device, dtype=dtype)
        self.film: nn.Linear | None = None
        self.decoder: HyperConvDecoder | None = None
        if config.num_hyperconv_blocks:
            if config.film:
                width = 2 * config.hidden_dim * config.num_hyperconv_blocks
                self.film = nn.Linear(config.hidden_dim, width, device=device, dtype=dtype)
            self.decoder = HyperConvDecoder(
                [config.hidden_shape] * (config.num_hyperconv_blocks + 1),
                config.kernel_size,
                config.block,
                kernel_size_w=config.kernel_size_w,
                activation_checkpointing=config.activation_checkpointing,
                device=device,
                dtype=dtype,
            )
        self.output_norm = nn.LayerNorm(config.hidden_dim, device=device, dtype=dtype)
        self.output_projection = nn.Linear(config.hidden_dim, config.output_dim, device=device, dtype=dtype)
        self.output_scale = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set what differs from the defaults of torch: no modulation at first, and outputs near zero."""
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)
        nn.init.zeros_(self.output_projection.bias)
        nn.init.constant_(self.output_scale, self.config.output_scale)

    def forward(self, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Generate the tokens of one adapter per row.

        Args:
            condition: [B, P, D] embeddings of P prompts, or [B, P, T, D] token states; any float dtype.
            mask: optional bool [B, P], or [B, P, T] with token states; true marks what counts.

        Returns:
            tokens [B, N, W] in the dtype of the parameters (or of autocast), token n = l · H + h.
        """
        check_condition(condition, mask, self.config.condition_dim)
        condition = condition.to(self.output_projection.weight.dtype)
        condition_BC = self.condition_encoder(condition, mask)
        x_BLHC, skip_BLHW = self.expander(condition_BC)
        if self.decoder is not None:
            x_BLHC = self.decoder(x_BLHC, self._modulation(condition_BC))
        y_BLHW: Tensor = self.output_projection(self.output_norm(x_BLHC)) * self.output_scale
        if skip_BLHW is not None:
            y_BLHW = y_BLHW + skip_BLHW
        return y_BLHW.flatten(1, 2)

    def _modulation(self, condition_BC: Tensor) -> list[tuple[Tensor, Tensor]] | None:
        if self.film is None:
            return None
        parts = self.film(condition_BC).chunk(2 * self.config.num_hyperconv_blocks, dim=-1)
        return list(zip(parts[::2], parts[1::2], strict=True))

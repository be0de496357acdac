"""The whole network, from condition embeddings to tokens: decides how its parts are joined and how it starts.

Legend: B tasks in the batch, P prompts of a task, M prompts of all training tasks, D condition_dim, C hidden_dim,
L layers, H tokens per layer, N = L·H tokens, W output_dim.
"""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hyperconv.checks import check_size
from hyperconv.condition import ConditionEncoder, check_condition, check_embeddings
from hyperconv.config import GeneratorConfig
from hyperconv.expander import BasisExpander, BroadcastExpander
from hyperconv.layers.conv import Factory
from hyperconv.layers.decoder import HyperConvDecoder

__all__ = ["HyperConvGenerator"]


class HyperConvGenerator(nn.Module):
    """Condition embeddings to tokens: input projection, sequence expander, HyperConv blocks, output projection.

    A fresh network answers every condition with (nearly) zero, which in z-scored tokens is the mean adapter.
    No forward pass changes it; before the first step of a training, `center_on` gives it the training prompts.

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
        factory: Factory = {"device": device, "dtype": dtype}
        C, W, num_blocks = config.hidden_dim, config.output_dim, config.num_hyperconv_blocks
        self.condition_encoder = ConditionEncoder(config, factory)
        self.expander = (BasisExpander if config.expander == "basis" else BroadcastExpander)(config, factory)
        self.film: nn.Linear | None = None
        self.decoder: HyperConvDecoder | None = None
        if num_blocks:
            if config.film:
                self.film = nn.Linear(C, 2 * C * num_blocks, **factory)
            self.decoder = HyperConvDecoder(
                [(*config.grid, C)] * (num_blocks + 1),
                config.kernel_size,
                config.block,
                kernel_size_w=config.kernel_size_w,
                activation_checkpointing=config.activation_checkpointing,
                **factory,
            )
        self.output_norm = nn.LayerNorm(C, **factory)
        self.output_projection = nn.Linear(C, W, **factory)
        self.output_scale = nn.Parameter(torch.full((), config.output_scale, **factory))
        # No modulation at first, and outputs near zero.
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)
        nn.init.zeros_(self.output_projection.bias)

    def center_on(self, embeddings_MD: Tensor) -> None:
        """Center conditions on these prompts from now on; call it once, before training, with all training prompts.

        A generator that was never centred takes embeddings as they are (mean 0, spread 1). With `centering="none"` the
        call has no effect.

        Args:
            embeddings_MD: [M, D], the embeddings of all prompts of all training tasks; any float dtype.

        Raises:
            HyperConvError: another shape, or NaN or infinite values.
        """
        check_embeddings(embeddings_MD, self.config.condition_dim)
        if self.condition_encoder.centering is not None:
            self.condition_encoder.centering.fit(embeddings_MD)

    def num_parameters(self) -> int:
        """Learned numbers of the network."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops(self, num_prompts: int = 8) -> int:
        """Floating-point operations of one forward pass for one adapter, counted without computing anything.

        A multiplication and an addition count as two, and only matrix products and convolutions are counted, zero
        padding included, as `torch.utils.flop_counter.FlopCounterMode` does.
        """
        twin = HyperConvGenerator(self.config, device="meta").eval()
        condition_BPD = torch.empty(1, check_size("num_prompts", num_prompts), self.config.condition_dim, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin(condition_BPD)
        return int(counter.get_total_flops())

    def forward(self, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Generate the tokens of one adapter per row.

        Args:
            condition: [B, P, D], the embeddings of P prompts; any float dtype.
            mask: optional bool [B, P]; true marks a prompt that counts.

        Returns:
            tokens [B, N, W] in the dtype of the parameters (or of autocast), token n = l · H + h.
        """
        check_condition(condition, mask, self.config.condition_dim)
        condition_BC = self.condition_encoder(condition, mask)
        x_BLHC, skip_BLHW = self.expander(condition_BC)
        if self.decoder is not None:
            modulation = None
            if self.film is not None:
                parts = self.film(condition_BC).chunk(2 * len(self.decoder.blocks), dim=-1)
                modulation = list(zip(parts[::2], parts[1::2], strict=True))
            x_BLHC = self.decoder(x_BLHC, modulation)
        y_BLHW: Tensor = self.output_projection(self.output_norm(x_BLHC)) * self.output_scale
        if skip_BLHW is not None:
            y_BLHW = y_BLHW + skip_BLHW
        return y_BLHW.flatten(1, 2)

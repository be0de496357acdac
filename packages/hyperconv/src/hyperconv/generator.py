"""The whole network, from condition embeddings to tokens: decides how its parts are joined and how it starts.

Legend: B tasks in the batch, P prompts of a task, M prompts of all training tasks, K training tasks, D condition_dim,
C hidden_dim, L layers, H tokens per layer, N = L·H tokens, W output_dim.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hyperconv.checks import check_size
from hyperconv.condition import ConditionEncoder, check_condition, check_embeddings, mean_embedding
from hyperconv.config import GeneratorConfig
from hyperconv.errors import HyperConvError
from hyperconv.expanders import BasisExpander, BroadcastExpander
from hyperconv.layers.conv import Factory
from hyperconv.layers.decoder import HyperConvDecoder
from hyperconv.linear import LeftOut, LinearExpander
from hyperconv.ridge import LeftOutFit, RidgeFit

__all__ = ["HyperConvGenerator"]

_EXPANDERS = {"linear": LinearExpander, "basis": BasisExpander, "broadcast": BroadcastExpander}


class HyperConvGenerator(nn.Module):
    """Condition embeddings to tokens: sequence expander, HyperConv blocks, output projection.

    A fresh network answers every condition with (nearly) zero, which in z-scored tokens is the mean adapter.
    No forward pass changes it; before the first step of a training, `center_on` gives it the training prompts, and
    `start_from` makes one with the expander "linear" a ridge regression over the training tasks.

    Args:
        config: the options; every one has a default.
        device: where the parameters are made ("meta" makes none).
        dtype: of the parameters.

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
        is_linear = config.expander == "linear"
        self.film: nn.Linear | None = None
        self.decoder: HyperConvDecoder | None = None
        self.condition_encoder: ConditionEncoder | None = None
        # Only what takes part is made: DistributedDataParallel waits for the gradient of every parameter.
        if not is_linear or (num_blocks and config.film):
            self.condition_encoder = ConditionEncoder(config, factory)
        self.expander = _EXPANDERS[config.expander](config, factory)
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
        has_output = num_blocks > 0 or not is_linear
        self.output_norm = nn.LayerNorm(C, **factory) if has_output else None
        self.output_projection = nn.Linear(C, W, **factory) if has_output else None
        self.output_scale = nn.Parameter(torch.full((), config.output_scale, **factory)) if has_output else None
        # No modulation at first, and outputs near zero: the expander "linear" starts as what it is by itself.
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)
        if self.output_projection is not None:
            nn.init.zeros_(self.output_projection.bias)
            if is_linear:
                nn.init.zeros_(self.output_projection.weight)

    def center_on(self, embeddings_MD: Tensor) -> None:
        """Center conditions on these prompts from now on; call it once, before training, with all training prompts.

        A generator that was never centred takes embeddings as they are (mean 0, spread 1). With `centering="none"` the
        call has no effect. `start_from` comes after it, since a ridge regression has a center of its own.

        Args:
            embeddings_MD: [M, D], the embeddings of all prompts of all training tasks; any float dtype.

        Raises:
            HyperConvError: another shape, or NaN or infinite values.
        """
        check_embeddings(embeddings_MD, self.config.condition_dim)
        if self.condition_encoder is not None and self.condition_encoder.centering is not None:
            self.condition_encoder.centering.fit(embeddings_MD)
        if isinstance(self.expander, LinearExpander) and self.config.centering == "prompts":
            self.expander.center.copy_(embeddings_MD.double().mean(0))

    def start_from(
        self,
        fit: RidgeFit,
        token_means_KNW: Tensor,
        prompts: Sequence[Tensor] | None = None,
        others: Sequence[Tensor] = (),
        unseen_NW: Tensor | None = None,
        *,
        learns_unseen: bool = False,
    ) -> None:
        """Make the network the ridge regression `fit` over the training tasks, whatever it was (expander "linear"), but
        for `unseen_NW`.

        For a mean prompt embedding c it answers with the tasks' tokens weighted by `fit.task_weights(c)`, and so with
        the mean of all at the fit's center. This is exact where `num_basis` is at least K - 1; fewer patterns keep the
        directions in which the tasks differ most; any beyond are zero, with small random features to learn from.
        The blocks add nothing at first.

        Args:
            fit: what `fit_ridge` found for the K training tasks.
            token_means_KNW: [K, N, W], the mean tokens of each, z-scored as those that the network is trained on.
            prompts: for a network that remembers its tasks (`num_tasks`), the embeddings [P, D] of each one's prompts.
            others: the same of training tasks that have no adapter: with `prompts` they decide along which directions
                of the prompts such a network learns.
            unseen_NW: tokens [N, W], z-scored, that such a network gives all prompts which are no training task's, in
                place of the regression's; of these it can still learn to add a share, zero at first.
            learns_unseen: whether training changes `unseen_NW` too. Where they were learned from the very samples that
                it sees, there is little to gain; where it sees every task shifted (`shift` of `forward`) to tokens that
                were learned without the task, there is.

        Raises:
            HyperConvError: another expander, shapes that do not belong together, or NaN or infinite values.

        >>> config = GeneratorConfig(condition_dim=8, grid=(2, 3), output_dim=4, num_basis=4, num_hyperconv_blocks=0)
        >>> rows_KSD, token_means_KNW = torch.randn(5, 2, 8), torch.randn(5, 6, 4)
        >>> gram_KK = token_means_KNW.flatten(1) @ token_means_KNW.flatten(1).T
        >>> fit = fit_ridge(rows_KSD, gram_KK)
        >>> generator = HyperConvGenerator(config)
        >>> generator.start_from(fit, token_means_KNW)
        >>> condition_BPD = torch.randn(1, 3, 8)
        >>> expected_BNW = torch.einsum("bk,knw->bnw", fit.task_weights(condition_BPD.mean(1)), token_means_KNW)
        >>> torch.allclose(generator(condition_BPD), expected_BNW, atol=1e-5)
        True
        """
        self._linear().start_from(fit, token_means_KNW, prompts, others, unseen_NW, learns_unseen=learns_unseen)
        if self.output_projection is not None:
            nn.init.zeros_(self.output_projection.weight)
            nn.init.zeros_(self.output_projection.bias)

    def leave_out(self, fits: Iterable[LeftOutFit]) -> LeftOut:
        """The features of a task's prompts where it and its relatives are no training tasks, to learn from.

        Args:
            fits: `left_out_fits` of the regression that the network has started from, one per task.

        Returns:
            a module that makes `features` for `forward` of mean embeddings and numbers of tasks.

        Raises:
            HyperConvError: a network that remembers no tasks, or fits of other tasks.
        """
        return self._linear().leave_out(fits)

    def _linear(self) -> LinearExpander:
        if not isinstance(self.expander, LinearExpander):
            raise HyperConvError(f'expander is {self.config.expander!r}, expected "linear" to start from a ridge fit.')
        return self.expander

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

    def forward(
        self,
        condition: Tensor,
        mask: Tensor | None = None,
        *,
        features: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Generate the tokens of one adapter per row.

        Args:
            condition: [B, P, D], the embeddings of P prompts; any float dtype.
            mask: optional bool [B, P]; true marks a prompt that counts.
            features: optional [B, num_basis], of `leave_out`: takes the place of what the regression makes of the
                condition, and no task is recognised (expander "linear").
            shift: optional [B, N, W], added to the tokens before any block sees them: by how much what a row starts
                from differs from what it would start from in use (expander "linear").

        Returns:
            tokens [B, N, W] in the dtype of the parameters (or of autocast), token n = l · H + h.
        """
        check_condition(condition, mask, self.config.condition_dim)
        encoded_BC = None if self.condition_encoder is None else self.condition_encoder(condition, mask)
        novelty_B: Tensor | None = None
        if isinstance(self.expander, LinearExpander):
            counts_BP = torch.ones_like(condition[..., 0]) if mask is None else mask
            num_prompts_B = counts_BP.sum(dim=1)
            x_BLHC, past_BLHW, novelty_B = self.expander(
                mean_embedding(condition, mask), num_prompts_B, features, shift
            )
        else:
            x_BLHC, past_BLHW = self.expander(encoded_BC)
        if self.decoder is not None:
            modulation = None
            if self.film is not None:
                parts = self.film(encoded_BC).chunk(2 * len(self.decoder.blocks), dim=-1)
                modulation = list(zip(parts[::2], parts[1::2], strict=True))
            x_BLHC = self.decoder(x_BLHC, modulation)
        if self.output_norm is None or self.output_projection is None:
            tokens_BLHW: Tensor = past_BLHW  # of the expander "linear" alone
            return tokens_BLHW.flatten(1, 2)
        y_BLHW: Tensor = self.output_projection(self.output_norm(x_BLHC)) * self.output_scale
        if novelty_B is not None:
            y_BLHW = y_BLHW * novelty_B[:, None, None, None]
        if past_BLHW is not None:
            y_BLHW = y_BLHW + past_BLHW
        return y_BLHW.flatten(1, 2)

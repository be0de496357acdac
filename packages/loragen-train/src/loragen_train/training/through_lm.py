"""Generated tokens through a frozen language model, and the gradient back to them.

Each pass through the model ends its backward pass at the tokens, where the gradients of all passes are added up; what
has made the tokens sees their sum once. So memory depends on the size of a pass, not on the number of tasks or samples.

Legend: B tasks, N tokens, W values per token, R response tokens of a pass, V vocabulary, S samples of a pass.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from lora_tokenizer import TokenLayout
from lora_tokenizer.names import split_name
from loragen_infer.adapters import AdapterStack
from loragen_infer.samples import TokenizedExample
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from loragen_train.errors import LoragenTrainError
from loragen_train.zoo.frozen import FrozenModel

__all__ = ["AdapterTokens", "PositionLoss", "ResponseNll", "ThroughLm"]


class AdapterTokens:
    """Tokens as adapters on a language model, many at once, with gradients.

    Args:
        layout: Which values each token holds.

    Raises:
        LoragenTrainError: Its adapters have more than two factors per linear layer.
    """

    def __init__(self, layout: TokenLayout) -> None:
        self._layout = layout
        self._places: dict[str, dict[str, str]] = {}
        for slot in layout.slots:
            module, part = split_name(slot.name)
            factor = {"lora_A.weight": "A", "lora_B.weight": "B"}.get(part)
            if factor is None:
                raise LoragenTrainError(
                    f"The adapters have {slot.name}, and only A and B of linear layers can be trained through a "
                    "language model; set training.objective to reconstruction."
                )
            self._places.setdefault(module, {})[factor] = slot.name
        self._scaling = {module: layout.config.scaling(module) for module in self._places}

    def check_fits(self, model: nn.Module, name: str) -> None:
        """Refuse a language model, called ``name``, whose layers have other shapes than the adapters."""
        shapes = {slot.name: slot.shape for slot in self._layout.slots}
        for module, factors in self._places.items():
            layer: Any = model.get_submodule(module)
            wanted, found = (shapes[factors["A"]][1], shapes[factors["B"]][0]), (layer.in_features, layer.out_features)
            if wanted != found:
                raise LoragenTrainError(
                    f"The adapters are for a {module!r} of {wanted[0]} to {wanted[1]} features, but that of the base "
                    f"model {name} has {found[0]} to {found[1]}; give theirs as training.lm.base_model."
                )

    def stack(self, tokens_BNW: Tensor) -> AdapterStack:
        """Return the adapters that tokens, not z-scored, stand for; gradients pass through them."""
        tensors = self._layout.tensors(tokens_BNW)
        return AdapterStack(
            a_Kri={module: tensors[factors["A"]] for module, factors in self._places.items()},
            b_Kor={module: tensors[factors["B"]] for module, factors in self._places.items()},
            scaling_K={
                module: torch.full((len(tokens_BNW),), scaling, device=tokens_BNW.device)
                for module, scaling in self._scaling.items()
            },
        )


class PositionLoss(Protocol):
    """A loss at every response token."""

    def __call__(self, logits_RV: Tensor, samples: Sequence[int]) -> Tensor:
        """Return the loss ``[R]`` where the model's logits are these, of samples by number, one after another."""


class ResponseNll:
    """The negative log-likelihood of the responses, in nats.

    Args:
        items: The samples by number.
    """

    def __init__(self, items: Sequence[TokenizedExample]) -> None:
        self._items = items

    def __call__(self, logits_RV: Tensor, samples: Sequence[int]) -> Tensor:
        answers = [token for sample in samples for token in self._items[sample].response_ids]
        return cross_entropy(logits_RV, torch.tensor(answers, device=logits_RV.device), reduction="none")


class ThroughLm:
    """Losses of generated adapters on samples of their tasks.

    Args:
        frozen: The language model.
        adapters: Makes adapters of tokens.
        items: The samples by number.
    """

    def __init__(self, frozen: FrozenModel, adapters: AdapterTokens, items: Sequence[TokenizedExample]) -> None:
        self._frozen, self._adapters, self._items = frozen, adapters, items
        frozen.choose_attention([items])

    def __call__(
        self,
        predicted_BNW: Tensor,
        denormalize: Callable[[Tensor], Tensor],
        samples: Sequence[Sequence[int]],
        position_loss: PositionLoss,
    ) -> tuple[Tensor, Tensor]:
        """Return the mean over all tasks, of which the gradient is that of ``predicted_BNW``, and each task's loss.

        A task's loss is the mean over its samples of the mean over a sample's response tokens.

        Args:
            predicted_BNW: Generated tokens, z-scored, float32.
            denormalize: Makes tokens as stored of such.
            samples: The numbers of each task's samples, one at least.
            position_loss: The loss at every response token.
        """
        is_trained = torch.is_grad_enabled() and predicted_BNW.requires_grad
        leaf_BNW = predicted_BNW.detach().requires_grad_(is_trained)
        loss_B = torch.zeros(len(samples), device=predicted_BNW.device)
        for part in self._frozen.passes([[self._items[number] for number in of_task] for of_task in samples]):
            chosen = [[samples[task][row] for row in rows] for task, rows in zip(*part, strict=True)]
            numbers = [number for of_task in chosen for number in of_task]
            task_S = torch.tensor([task for task, rows in zip(*part, strict=True) for _ in rows]).to(loss_B.device)
            weights = [
                1 / (len(samples[task]) * len(self._items[samples[task][row]].response_ids))
                for task, rows in zip(*part, strict=True)
                for row in rows
            ]
            adapters = self._adapters.stack(denormalize(leaf_BNW[part.adapters]))
            items = [[self._items[number] for number in of_task] for of_task in chosen]
            with self._frozen.response_logits(adapters, items) as found:
                weight_R = torch.tensor(weights).to(found.row_R.device)[found.row_R]
                weighted_R = position_loss(found.logits_RV, numbers) * weight_R
                if is_trained:
                    torch.autograd.backward(weighted_R.sum())
            loss_B.index_add_(0, task_S[found.row_R.to(loss_B.device)], weighted_R.detach().to(loss_B.device))
        loss = loss_B.mean()
        if leaf_BNW.grad is None:
            return loss, loss_B
        gathered: Tensor = _Gathered.apply(loss, predicted_BNW, leaf_BNW.grad / len(samples))  # type: ignore[no-untyped-call]
        return gathered, loss_B


class _Gathered(torch.autograd.Function):
    """A loss whose gradient with respect to what it was computed from is known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, _predicted_BNW: Tensor, gradient_BNW: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_BNW)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (gradient_BNW,) = ctx.saved_tensors
        return None, gradients[0] * gradient_BNW, None

"""Trains several LoRA adapters at once on one frozen language model, from where an interrupted training stood, to the
same bits.

Every adapter sees its own batches, has its own loss and its own clipping, and AdamW treats every value alone; so all at
once give what one after another gives, to rounding. The order of samples is fixed before the first step: a permutation
per epoch, grouped by length.

Legend: K adapters, B samples of all of them.
"""

import logging
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lora_tokenizer import LoraAdapter
from loragen_infer.adapters import AdapterStack
from loragen_infer.errors import reason_of
from loragen_infer.files import atomic_file
from loragen_infer.progress import ProgressBar
from loragen_infer.samples import TokenizedExample
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import get_length_grouped_indices

from loragen_train.configs.collect import CollectConfig
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.items import AdapterTask

__all__ = ["TrainedAdapters", "order_of_samples", "train_adapters"]

logger = logging.getLogger(__name__)

_STATE = "state.ckpt"
# What torch.load makes of bytes that are no checkpoint.
_UNREADABLE = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError
)  # fmt: skip
_MAX_GRAD_NORM = 1.0  # as in the transformers Trainer


@dataclass(frozen=True, kw_only=True)
class TrainedAdapters:
    """What came of a training of K adapters."""

    checkpoints: dict[int, AdapterStack]
    """By step, the weights of all adapters; the last steps only."""
    losses: list[list[float]]
    """Of every step, the mean loss per response token of each adapter, in nats."""
    diverged: list[bool]
    """Of each adapter, whether a gradient or a weight was not finite; its weights mean nothing then."""
    seconds: float
    cpu_seconds: float
    num_tokens: list[int]
    """Of each adapter, how many tokens it was trained on, padding not counted."""

    @property
    def last(self) -> AdapterStack:
        """The weights after the last step."""
        return self.checkpoints[max(self.checkpoints)]


def train_adapters(
    tasks: Sequence[AdapterTask],
    frozen: FrozenModel,
    config: CollectConfig,
    *,
    initial: LoraAdapter,
    num_steps: int,
    folder: Path,
    fabric: Fabric,
) -> TrainedAdapters:
    """Train an adapter for every task, all from the one called ``initial``, on the tokens of the responses.

    ``folder`` keeps the last checkpoints and the state of the training, from which a second call goes on.
    """
    run = _Run(tasks, frozen, config, initial=initial, num_steps=num_steps, folder=folder, fabric=fabric)
    run.resume()
    name = tasks[0].name if len(tasks) == 1 else f"{len(tasks)} adapters"
    if run.step:
        logger.info("%s: going on after step %d.", ", ".join(task.name for task in tasks), run.step)
    with ProgressBar(name, total=num_steps, unit="step", done=run.step) as bar:
        while run.step < num_steps and not run.all_diverged:
            run.advance()
            bar.advance(loss=f"{run.last_loss:.3f}")
    return run.result()


def order_of_samples(lengths: list[int], num_samples: int, batch_size: int, seed: int) -> list[int]:
    """Return which sample is seen when: each epoch a permutation of its own, in batches of like length."""
    group: Callable[..., list[int]] = get_length_grouped_indices
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < num_samples:
        order += group(lengths, batch_size, generator=generator)
    return order[:num_samples]


class _Run:
    """A training of K adapters: weights, optimizer, and where it stands."""

    def __init__(
        self,
        tasks: Sequence[AdapterTask],
        frozen: FrozenModel,
        config: CollectConfig,
        *,
        initial: LoraAdapter,
        num_steps: int,
        folder: Path,
        fabric: Fabric,
    ) -> None:
        training = config.training
        self._frozen, self._dropout, self._folder, self._fabric = frozen, config.lora.lora_dropout, folder, fabric
        self._num_steps, self._save_every, self._keep_last = num_steps, training.save_every, training.keep_last
        self._batches = [_batches(task.train, training.batch_size, num_steps, config.seed) for task in tasks]
        torch.manual_seed(config.seed)  # of dropout
        self._adapters = _copies(initial, len(tasks), fabric.device)
        self._weights = [*self._adapters.a_Kri.values(), *self._adapters.b_Kor.values()]
        self._optimizer = torch.optim.AdamW(self._weights, lr=training.learning_rate, weight_decay=0.0)
        make_schedule: Callable[..., LambdaLR] = get_linear_schedule_with_warmup
        self._schedule = make_schedule(self._optimizer, max(1, num_steps // 10), num_steps)
        self._diverged_K = torch.zeros(len(tasks), dtype=torch.bool, device=fabric.device)
        self._losses: list[Tensor] = []
        self.step, self._seconds, self._cpu_seconds = 0, 0.0, 0.0

    @property
    def last_loss(self) -> float:
        """Mean loss of the adapters in the last step, those that have diverged left out."""
        return float(self._losses[-1][~self._diverged_K].mean())

    @property
    def all_diverged(self) -> bool:
        """Whether there is nothing left to train."""
        return bool(self._diverged_K.all())

    def advance(self) -> None:
        """Take a step with every adapter, and save where it is due."""
        started, cpu_started = time.perf_counter(), time.process_time()
        self._losses.append(self._backward([batches[self.step] for batches in self._batches]))
        self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad()
        for weight in self._weights:
            self._diverged_K |= ~weight.detach().isfinite().flatten(1).all(dim=1)
        self._schedule.step()
        self.step += 1
        self._seconds += time.perf_counter() - started
        self._cpu_seconds += time.process_time() - cpu_started
        if self.step == self._num_steps or self.step % self._save_every == 0:
            self._save()

    def result(self) -> TrainedAdapters:
        """Return the kept checkpoints and the record."""
        return TrainedAdapters(
            checkpoints={step: _read_stack(file) for step, file in self._checkpoints().items()},
            losses=[loss_K.tolist() for loss_K in self._losses],
            diverged=self._diverged_K.tolist(),
            seconds=self._seconds,
            cpu_seconds=self._cpu_seconds,
            num_tokens=[
                sum(len(item.input_ids) for batch in batches[: self.step] for item in batch)
                for batches in self._batches
            ],
        )

    def _backward(self, batches: Sequence[list[TokenizedExample]]) -> Tensor:
        """Add up the gradients of one batch per adapter; return the mean loss per response token of each, ``[K]``."""
        device, frozen = self._fabric.device, self._frozen
        num_tokens_K = torch.tensor([sum(len(item.response_ids) for item in batch) for batch in batches]).to(device)
        loss_K = torch.zeros(len(batches), device=device)
        for part in frozen.passes(batches, dropout=self._dropout):
            samples = [[batches[index][row] for row in rows] for index, rows in zip(*part, strict=True)]
            num_samples = [len(of_adapter) for of_adapter in samples]
            adapter_B = torch.tensor(part.adapters).repeat_interleave(torch.tensor(num_samples)).to(device)
            is_whole = len(part.adapters) == len(batches)
            adapters = self._adapters if is_whole else self._adapters.select(part.adapters)
            with frozen.response_nll(adapters, samples, dropout=self._dropout) as nll_B:
                loss_B = nll_B / num_tokens_K[adapter_B]
                self._fabric.backward(loss_B.sum())
            loss_K.index_add_(0, adapter_B, loss_B.detach())
        return loss_K

    def _clip(self) -> None:
        """Bound the norm of each adapter's gradient by itself; one that is not finite is no reason to stop the others.

        The gradient of an adapter that has diverged counts as zero from then on.
        """
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        norm_K = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        self._diverged_K |= ~norm_K.isfinite()
        scale_K = (_MAX_GRAD_NORM / (norm_K + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale_K[:, None, None]).masked_fill_(self._diverged_K[:, None, None], 0.0)

    def _checkpoints(self) -> dict[int, Path]:
        """The files of the checkpoints in the folder, by step, the earliest first."""
        files = {int(file.stem.removeprefix("checkpoint-")): file for file in self._folder.glob("checkpoint-*")}
        return dict(sorted(files.items()))

    def _save(self) -> None:
        _write_stack(self._adapters, self._folder / f"checkpoint-{self.step}.safetensors")
        state = {
            "step": self.step,
            "weights": [weight.detach() for weight in self._weights],
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "losses": self._losses,
            "diverged": self._diverged_K,
            "seconds": self._seconds,
            "cpu_seconds": self._cpu_seconds,
            "random": _random_states(self._fabric.device),
        }
        with atomic_file(self._folder / _STATE) as part:
            self._fabric.save(part, state)
        for file in list(self._checkpoints().values())[: -self._keep_last]:
            file.unlink()

    def resume(self) -> None:
        """Take up the state in the folder, if there is one that can be read."""
        file = self._folder / _STATE
        if not file.is_file():
            return
        try:
            state = self._fabric.load(file, weights_only=True)
        except _UNREADABLE as error:
            logger.warning("%s cannot be read (%s); the training starts over.", file, reason_of(error))
            return
        device = self._fabric.device
        with torch.no_grad():
            for weight, value in zip(self._weights, state["weights"], strict=True):
                weight.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._losses = [loss_K.to(device) for loss_K in state["losses"]]
        self._diverged_K = state["diverged"].to(device)
        self.step, self._seconds, self._cpu_seconds = state["step"], state["seconds"], state["cpu_seconds"]
        _set_random_states(device, state["random"])
        for step, checkpoint in self._checkpoints().items():
            if step > self.step:  # written just before the state was to be
                checkpoint.unlink()


def _batches(items: list[TokenizedExample], size: int, num_steps: int, seed: int) -> list[list[TokenizedExample]]:
    order = order_of_samples([len(item.input_ids) for item in items], num_steps * size, size, seed)
    return [[items[index] for index in order[start : start + size]] for start in range(0, len(order), size)]


def _copies(initial: LoraAdapter, num_adapters: int, device: torch.device) -> AdapterStack:
    """``num_adapters`` times the same adapter, float32, to be trained."""
    stack = AdapterStack.of([initial.to(torch.float32)] * num_adapters)

    def trainable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}

    return AdapterStack(a_Kri=trainable(stack.a_Kri), b_Kor=trainable(stack.b_Kor), scaling_K=stack.scaling_K)


def _write_stack(stack: AdapterStack, file: Path) -> None:
    tensors = {
        f"{kind}.{name}": tensor.detach().cpu()
        for kind, of_kind in (("A", stack.a_Kri), ("B", stack.b_Kor), ("scaling", stack.scaling_K))
        for name, tensor in of_kind.items()
    }
    with atomic_file(file) as part:
        save_file(tensors, part)


def _read_stack(file: Path) -> AdapterStack:
    parts: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}, "scaling": {}}
    for key, tensor in load_file(file).items():
        kind, _, name = key.partition(".")
        parts[kind][name] = tensor
    return AdapterStack(a_Kri=parts["A"], b_Kor=parts["B"], scaling_K=parts["scaling"])


def _random_states(device: torch.device) -> list[Tensor]:
    """What dropout draws from: the generators of the CPU and of an accelerator."""
    of_device = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(device)]
    return [torch.get_rng_state(), *of_device]


def _set_random_states(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0].cpu())
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1].cpu(), device)

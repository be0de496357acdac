"""Trains one LoRA adapter with the transformers Trainer, from where an interrupted training stood, to the same bits.

The order of all samples is fixed before the first step (a permutation per epoch, grouped by length), so a training that
is continued sees what it would have seen. The Trainer's checkpoints bring back weights, optimizer and random states.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loragen_infer.files import write_json
from loragen_infer.progress import ProgressBar
from loragen_infer.samples import TokenizedExample
from peft import PeftModel
from torch.utils.benchmark import Timer
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from loragen_train.configs.collect import LoraTraining, Precision
from loragen_train.errors import LoragenTrainError

__all__ = ["checkpoints_of", "faster_precision", "order_of_samples", "train_lora"]

logger = logging.getLogger(__name__)

# Written last into a checkpoint, so that one that was cut short is never continued from.
_COMPLETE = "work.json"


def train_lora(
    name: str,
    training: LoraTraining,
    seed: int,
    folder: Path,
    items: list[TokenizedExample],
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    precision: Precision,
) -> dict[str, Any]:
    """Train the adapter on ``model`` in place, its loss on response tokens only, and return the record of it.

    ``folder`` gets ``checkpoint-<step>/``, PEFT folders with the training's state; the last one there is continued.
    """
    order = order_of_samples([len(item.input_ids) for item in items], training, seed)
    rows = [{"input_ids": item.input_ids, "labels": item.labels} for item in items]
    trainer = Trainer(
        model=model,
        args=_arguments(training, seed, folder, precision),
        train_dataset=[rows[index] for index in order],
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    last = _last_complete(folder)
    if last is not None:
        logger.info("%s: going on after step %d.", name, _step_of(last))
    watch = _StepProgress(name, last)
    trainer.add_callback(watch)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if not all(value.isfinite().all() for value in model.parameters() if value.requires_grad):
        raise LoragenTrainError(
            f"The training of {name} diverged (its weights are not finite); lower training.learning_rate, which is "
            f"{training.learning_rate}."
        )
    num_tokens = sum(len(items[index].input_ids) for index in order)
    return {
        "seconds": round(watch.seconds, 1),
        "cpu_seconds": round(watch.cpu_seconds, 1),
        "num_tokens": num_tokens,
        "tokens_per_second": round(num_tokens / watch.seconds, 1),
        "loss": [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row],
    }


def order_of_samples(lengths: list[int], training: LoraTraining, seed: int) -> list[int]:
    """Return which sample is seen when: each epoch a permutation of its own, in batches of like length.

    Example:
        >>> training = LoraTraining(max_steps=3, batch_size=2, save_every=1)
        >>> order = order_of_samples([5, 9, 1], training, seed=0)
        >>> len(order), sorted(order[:3]), sorted(order[3:])
        (6, [0, 1, 2], [0, 1, 2])
    """
    group: Callable[..., list[int]] = get_length_grouped_indices
    generator = torch.Generator().manual_seed(seed)
    wanted = training.max_steps * training.batch_size
    order: list[int] = []
    while len(order) < wanted:
        order += group(lengths, training.batch_size, generator=generator)
    return order[:wanted]


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the ``checkpoint-<step>`` folders in ``folder``, the earliest first."""
    return sorted(folder.glob("checkpoint-*"), key=_step_of)


def faster_precision() -> Precision:
    """Return ``bf16`` if a matrix product of the size of a small layer takes under 3/4 of the time in bfloat16."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")

    def seconds(dtype: torch.dtype) -> float:
        names = {"matrix": torch.ones(1024, 1024, dtype=dtype, device=device)}
        timer = Timer("(matrix @ matrix).sum()", globals=names, num_threads=torch.get_num_threads())
        return float(timer.blocked_autorange(min_run_time=0.1).median)

    return "bf16" if seconds(torch.bfloat16) < 0.75 * seconds(torch.float32) else "fp32"


def _arguments(training: LoraTraining, seed: int, folder: Path, precision: Precision) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.max_steps,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=max(1, training.max_steps // 10),
        bf16=precision == "bf16",
        train_sampling_strategy="sequential",
        save_steps=training.save_every,
        save_total_limit=training.keep_last,
        logging_steps=training.save_every,
        # The filter would show the last finite loss in place of NaN.
        logging_nan_inf_filter=False,
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=False,
        seed=seed,
    )
    # On several GPUs the Trainer would split off a batch for each, and batch_size would mean something else.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _last_complete(folder: Path) -> Path | None:
    """The last complete checkpoint in ``folder``; what was cut short after it is removed."""
    for checkpoint in reversed(checkpoints_of(folder)):
        if (checkpoint / _COMPLETE).is_file():
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


class _StepProgress(TrainerCallback):
    """Shows the steps and the loss, takes their time, and keeps it with every checkpoint, which it makes complete."""

    def __init__(self, name: str, last: Path | None) -> None:
        self._name = name
        self._shown: dict[str, str] = {}
        work = {} if last is None else json.loads((last / _COMPLETE).read_text(encoding="utf-8"))
        self.seconds: float = work.get("seconds", 0.0)
        self.cpu_seconds: float = work.get("cpu_seconds", 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = ProgressBar(self._name, total=state.max_steps, unit="step", done=state.global_step)
        self._started = time.perf_counter() - self.seconds
        self._cpu_started = time.process_time() - self.cpu_seconds

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self._shown = {"loss": f"{float(logs['loss']):.3f}"}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.advance(**self._shown)
        self.seconds = time.perf_counter() - self._started
        self.cpu_seconds = time.process_time() - self._cpu_started

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for file in checkpoint.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        write_json(checkpoint / _COMPLETE, {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()

"""Trains one LoRA adapter with the transformers Trainer and keeps its last checkpoints as plain PEFT folders."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from loragen_infer.examples import TokenizedExample
from loragen_infer.progress import ProgressBar
from peft import PeftModel
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from loragen_train.collect_config import LoraTraining
from loragen_train.errors import LoragenTrainError

__all__ = ["train_lora"]


def train_lora(
    name: str,
    training: LoraTraining,
    seed: int,
    folder: Path,
    items: list[TokenizedExample],
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, float]]:
    """Train the adapter on ``model`` in place, its loss on response tokens only.

    Args:
        name: What the progress display calls the work.
        training: Steps, batch size, learning rate, which checkpoints to keep.
        seed: Seed of the order of samples and of dropout.
        folder: Gets ``checkpoint-<step>/``, each an ordinary PEFT folder.
        items: The samples.
        model: The language model with a trainable adapter.
        tokenizer: Its tokenizer, for padding.

    Returns:
        The mean loss of every ``save_every`` steps: ``[{"step": 4, "loss": 2.5}, ...]``.

    Raises:
        LoragenTrainError: The training diverged.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.max_steps,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=max(1, training.max_steps // 10),
        bf16=training.precision == "bf16" or (training.precision == "auto" and _bf16_is_faster()),
        train_sampling_strategy="group_by_length",
        save_steps=training.save_every,
        save_total_limit=training.keep_last,
        save_only_model=True,
        logging_steps=training.save_every,
        # The filter would show the last finite loss in place of NaN.
        logging_nan_inf_filter=False,
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=False,
        seed=seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": item.input_ids, "labels": item.labels} for item in items],
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(_StepProgress(name))
    trainer.train()
    if not all(value.isfinite().all() for value in model.parameters() if value.requires_grad):
        raise LoragenTrainError(
            f"The training of {name} diverged (its weights are not finite); lower training.learning_rate, which is "
            f"{training.learning_rate}."
        )
    for checkpoint in folder.glob("checkpoint-*"):
        _keep_only_adapter(checkpoint)
    return [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row]


class _StepProgress(TrainerCallback):
    """Shows the steps and the loss."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = ProgressBar(self._name, total=state.max_steps, unit="step")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self._shown = {"loss": f"{float(logs['loss']):.3f}"}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.advance(**self._shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()


def _keep_only_adapter(checkpoint: Path) -> None:
    """Remove what the trainer adds: its pickled arguments, which nobody should have to trust, and its state."""
    for file in checkpoint.iterdir():
        if file.name not in {"adapter_config.json", "adapter_model.safetensors"}:
            shutil.rmtree(file) if file.is_dir() else file.unlink()


def _bf16_is_faster() -> bool:
    """Whether a matrix product of the size of a small layer takes under 3/4 of the time in bfloat16."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(1024, 1024, dtype=dtype, device=device)
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            (matrix @ matrix).sum().item()
            best = min(best, time.perf_counter() - started)
        return best

    return seconds(torch.bfloat16) < 0.75 * seconds(torch.float32)

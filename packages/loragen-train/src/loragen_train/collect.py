"""Trains the zoo: one LoRA adapter per task, all from one initialisation, several checkpoints of each kept.

One initialisation for all is what makes adapters comparable position by position: from different ones the same
weight change would be written in unrelated bases.

    <output_dir>/base_model/                      only when the base model is a GGUF file: the unpacked model
    <output_dir>/initial_adapter/                 the shared initialisation, a PEFT folder
    <output_dir>/adapters/<task>/checkpoint-<n>/  PEFT folders
    <output_dir>/adapters/<task>/training.json    settings, loss curve, speed
    <output_dir>/train/<task>.jsonl, <output_dir>/test/<task>.jsonl
"""

import json
import logging
import random
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loragen_infer.base_model import load_base_model, save_base_model
from loragen_infer.examples import Example, tokenize_example
from loragen_infer.files import atomic_folder, write_json, write_jsonl
from loragen_infer.locate import locate_model

from loragen_train.collect_config import CollectConfig, CollectTask, LoraTraining
from loragen_train.errors import LoragenTrainError
from loragen_train.sources import load_samples

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

__all__ = ["collect"]

logger = logging.getLogger(__name__)


def collect(config: CollectConfig) -> list[Path]:
    """Train what is missing of the zoo that ``config`` describes; return the adapter folders of its tasks.

    A task whose training was interrupted starts again; a finished one is left alone.

    Raises:
        LoragenTrainError: ``output_dir`` holds a task trained with other settings, or a source has too few samples.
        LoragenInferError: The base model or a sample file cannot be read.
    """
    output_dir = Path(config.output_dir)
    wanted = [task for task in config.tasks if not task.held_out]
    for task in config.tasks:
        _write_samples(config, task, output_dir)
    missing = [task for task in wanted if not _is_done(config, task, output_dir)]
    if missing:
        model, tokenizer = _model_with_adapter(config, output_dir)
        for number, task in enumerate(missing, start=1):
            logger.info("Training the adapter of %s (%d of %d).", task.name, number, len(missing))
            _train_task(config, task, output_dir, model, tokenizer)
    for task in wanted:
        if task not in missing:
            logger.info("The adapter of %s is there already.", task.name)
    return [output_dir / "adapters" / task.name for task in wanted]


def _write_samples(config: CollectConfig, task: CollectTask, output_dir: Path) -> None:
    samples = load_samples(task.source, num_samples=task.num_train + task.num_test, seed=config.seed)
    # Generators may order their samples by difficulty; a shuffle makes train and test alike.
    random.Random(config.seed).shuffle(samples)
    for part, rows in (("train", samples[: task.num_train]), ("test", samples[task.num_train :])):
        write_jsonl(output_dir / part / f"{task.name}.jsonl", map(asdict, rows))


def _settings(config: CollectConfig, task: CollectTask) -> dict[str, Any]:
    """What decides the weights of a task's adapter."""
    return {
        "base_model": config.base_model,
        "lora": asdict(config.lora),
        "training": asdict(config.training),
        "task": asdict(task),
        "seed": config.seed,
    }


def _is_done(config: CollectConfig, task: CollectTask, output_dir: Path) -> bool:
    folder = output_dir / "adapters" / task.name
    if not folder.is_dir():
        return False
    record = folder / "training.json"
    if not record.is_file():
        raise LoragenTrainError(f"{folder} exists but was not written by collect; choose another output_dir.")
    trained = json.loads(record.read_text(encoding="utf-8"))["settings"]
    wanted = _settings(config, task)
    if trained != wanted:
        changed = next(key for key in wanted if trained.get(key) != wanted[key])
        raise LoragenTrainError(
            f"{folder} was trained with other settings ({changed}: {trained.get(changed)}); remove it or choose "
            "another output_dir."
        )
    return True


def _model_with_adapter(config: CollectConfig, output_dir: Path) -> "tuple[PeftModel, PreTrainedTokenizerBase]":
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    name = config.base_model
    if locate_model(name, kind="base model").endswith(".gguf"):
        name = str(save_base_model(name, output_dir / "base_model").resolve())
    base, tokenizer = load_base_model(name)
    initial = output_dir / "initial_adapter"
    if not initial.is_dir():
        torch.manual_seed(config.seed)
        lora = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=name, **asdict(config.lora))
        try:
            fresh = get_peft_model(base, lora)
        except ValueError as error:
            raise LoragenTrainError(
                f"lora.target_modules {config.lora.target_modules} do not fit {config.base_model}: {error}"
            ) from error
        with atomic_folder(initial) as part:
            fresh.save_pretrained(part)
        base = fresh.unload()
    model = PeftModel.from_pretrained(base, str(initial), is_trainable=True)
    return model, tokenizer


def _train_task(
    config: CollectConfig,
    task: CollectTask,
    output_dir: Path,
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(output_dir / "initial_adapter"), device="cpu"))
    rows = (output_dir / "train" / f"{task.name}.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [Example(**json.loads(row)) for row in rows]
    tokenized = [tokenize_example(tokenizer, sample, max_length=config.training.max_length) for sample in samples]
    features = [{"input_ids": item.input_ids, "labels": item.labels} for item in tokenized]
    with atomic_folder(output_dir / "adapters" / task.name) as part:
        started = time.perf_counter()
        history = _run_trainer(config.training, config.seed, part, features, model, tokenizer)
        seconds = time.perf_counter() - started
        checkpoints = sorted(part.glob("checkpoint-*"))
        for checkpoint in checkpoints:
            _keep_only_adapter(checkpoint)
        epochs = config.training.max_steps * config.training.batch_size / len(features)
        tokens = epochs * sum(len(item.input_ids) for item in tokenized)
        record = {
            "settings": _settings(config, task),
            "seconds": round(seconds, 1),
            "tokens_per_second": round(tokens / seconds, 1),
            "loss": history,
        }
        write_json(part / "training.json", record)
    logger.info("%s: loss %.3f, %.0f tokens/s.", task.name, history[-1]["loss"], tokens / seconds)


def _run_trainer(
    training: LoraTraining,
    seed: int,
    folder: Path,
    features: list[dict[str, list[int]]],
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
) -> list[dict[str, float]]:
    """Train ``model`` in place, write its checkpoints under ``folder``, return the loss every ``save_every`` steps."""
    import torch
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

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
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=False,
        seed=seed,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=features, data_collator=collator)
    trainer.train()
    return [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row]


def _keep_only_adapter(checkpoint: Path) -> None:
    """Remove what the trainer adds: its pickled arguments, which nobody should have to trust, and its state."""
    for file in checkpoint.iterdir():
        if file.name not in {"adapter_config.json", "adapter_model.safetensors"}:
            shutil.rmtree(file) if file.is_dir() else file.unlink()


def _bf16_is_faster() -> bool:
    """Whether a matrix product of the size of a small layer takes under 3/4 of the time in bfloat16."""
    import torch

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

"""Trains the zoo: one LoRA adapter per task, all from one initialisation, several checkpoints of each kept.

One initialisation for all is what makes adapters comparable position by position: from different ones the same
weight change would be written in unrelated bases.

    <output_dir>/base_model/                      only when the base model is a GGUF file: the unpacked model
    <output_dir>/initial_adapter/                 the shared initialisation, a PEFT folder, and its settings.json
    <output_dir>/adapters/<task>/checkpoint-<n>/  PEFT folders
    <output_dir>/adapters/<task>/training.json    settings, loss curve, speed
    <output_dir>/train/<task>.jsonl, <output_dir>/test/<task>.jsonl
"""

import json
import logging
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from loragen_infer.base_model import load_base_model, save_base_model
from loragen_infer.command_line import nearest
from loragen_infer.examples import read_examples, tokenize_example
from loragen_infer.files import atomic_folder, write_json, write_jsonl
from loragen_infer.locate import locate_model
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loragen_train.collect_config import CollectConfig, CollectTask
from loragen_train.errors import LoragenTrainError
from loragen_train.lora_training import train_lora
from loragen_train.sources import load_samples

__all__ = ["collect"]

logger = logging.getLogger(__name__)


def collect(config: CollectConfig) -> list[Path]:
    """Train what is missing of the zoo that ``config`` describes; return the adapter folders of its tasks.

    A task whose training was interrupted starts again; a finished one is left alone, and so are its samples, which say
    what it was trained on.

    Raises:
        LoragenTrainError: ``output_dir`` holds a task or an initialisation made with other settings, a source has too
            few samples, the base model lacks a target module, or a training diverged.
        LoragenInferError: The base model or a sample file cannot be read.
    """
    output_dir = Path(config.output_dir)
    wanted = [task for task in config.tasks if not task.held_out]
    missing = [task for task in wanted if not _is_done(config, task, output_dir)]
    if missing and (output_dir / "initial_adapter").is_dir():
        _check_settings(output_dir / "initial_adapter", "settings.json", _shared_settings(config))
    for task in config.tasks:
        if task.held_out or task in missing:
            _write_samples(config, task, output_dir)
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


def _shared_settings(config: CollectConfig) -> dict[str, Any]:
    """What decides the initialisation."""
    return {"base_model": config.base_model, "lora": asdict(config.lora), "seed": config.seed}


def _settings(config: CollectConfig, task: CollectTask) -> dict[str, Any]:
    """What decides the weights of a task's adapter."""
    return {**_shared_settings(config), "training": asdict(config.training), "task": asdict(task)}


def _is_done(config: CollectConfig, task: CollectTask, output_dir: Path) -> bool:
    folder = output_dir / "adapters" / task.name
    if not folder.is_dir():
        return False
    _check_settings(folder, "training.json", _settings(config, task))
    return True


def _check_settings(folder: Path, record_name: str, wanted: dict[str, Any]) -> None:
    record = folder / record_name
    if not record.is_file():
        raise LoragenTrainError(f"{folder} exists but was not written by collect; choose another output_dir.")
    found = json.loads(record.read_text(encoding="utf-8"))["settings"]
    changed = next((key for key in wanted if found.get(key) != wanted[key]), None)
    if changed is not None:
        raise LoragenTrainError(
            f"{folder} was made with other settings ({changed}: {found.get(changed)}); remove it or choose another "
            "output_dir."
        )


def _model_with_adapter(config: CollectConfig, output_dir: Path) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    name = config.base_model
    if locate_model(name, kind="base model").endswith(".gguf"):
        name = str(save_base_model(name, output_dir / "base_model").resolve())
    base, tokenizer = load_base_model(name)
    initial = output_dir / "initial_adapter"
    if not initial.is_dir():
        torch.manual_seed(config.seed)
        lora = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=name, **asdict(config.lora))
        _check_target_modules(config, base)
        fresh = get_peft_model(base, lora)
        with atomic_folder(initial) as part:
            fresh.save_pretrained(str(part))
            write_json(part / "settings.json", {"settings": _shared_settings(config)})
        fresh.unload()
    model = PeftModel.from_pretrained(base, str(initial), is_trainable=True)
    return model, tokenizer


def _check_target_modules(config: CollectConfig, base: PreTrainedModel) -> None:
    """Name a target module that ``base`` lacks; PEFT keeps silent as long as it has one of them."""
    # PEFT's rule for a list: the whole name of a module, or its end from a dot on.
    ends = {name.split(".", start)[-1] for name, _ in base.named_modules() for start in range(name.count(".") + 1)}
    for module in config.lora.target_modules:
        if module not in ends:
            leaves = sorted(
                {name.rpartition(".")[2] for name, part in base.named_modules() if not list(part.children())}
            )
            raise LoragenTrainError(
                f"lora.target_modules names {module!r}, which {config.base_model} lacks{nearest(module, leaves)}."
            )


def _train_task(
    config: CollectConfig, task: CollectTask, output_dir: Path, model: PeftModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    set_peft_model_state_dict(model, load_peft_weights(str(output_dir / "initial_adapter"), device="cpu"))
    samples = read_examples(output_dir / "train" / f"{task.name}.jsonl")
    items = [tokenize_example(tokenizer, sample, max_length=config.training.max_length) for sample in samples]
    with atomic_folder(output_dir / "adapters" / task.name) as part:
        started = time.perf_counter()
        losses = train_lora(task.name, config.training, config.seed, part, items, model, tokenizer)
        seconds = time.perf_counter() - started
        epochs = config.training.max_steps * config.training.batch_size / len(items)
        tokens_per_second = epochs * sum(len(item.input_ids) for item in items) / seconds
        record = {
            "settings": _settings(config, task),
            "seconds": round(seconds, 1),
            "tokens_per_second": round(tokens_per_second, 1),
            "loss": losses,
        }
        write_json(part / "training.json", record)
    logger.info("%s: %.0f s at %.0f tokens/s.", task.name, seconds, tokens_per_second)

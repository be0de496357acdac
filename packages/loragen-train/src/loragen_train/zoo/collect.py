"""Trains the zoo: one LoRA adapter per task, all from one initialisation, several checkpoints of each kept.

One initialisation for all is what makes adapters comparable position by position: from different ones the same
weight change would be written in unrelated bases. The README has the files that a zoo is made of.
"""

import hashlib
import importlib.metadata
import logging
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from loragen_infer.files import atomic_folder, locked, write_json, write_jsonl
from loragen_infer.models.base_model import load_base_model, save_base_model
from loragen_infer.models.locate import hub_name, locate_model
from loragen_infer.samples import read_examples, tokenize_example
from loragen_infer.words import counted, nearest
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loragen_train.configs.collect import CollectConfig, CollectTask, Precision
from loragen_train.errors import LoragenTrainError
from loragen_train.plots import colour_of, label_of, saved_figure
from loragen_train.prompts.combine import unused_samples
from loragen_train.prompts.sources import Source, read_samples
from loragen_train.zoo.records import (
    check_base_model,
    check_settings,
    decide_precision,
    read_record,
    shared_settings,
    task_settings,
)
from loragen_train.zoo.train_lora import checkpoints_of, train_lora

__all__ = ["collect"]

logger = logging.getLogger(__name__)

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Beyond so many tasks the legend of the losses would be larger than the picture.
_MAX_NAMED = 36


def collect(config: CollectConfig) -> list[Path]:
    """Train what is missing of the zoo that ``config`` describes; return the adapter folders of its tasks.

    A task whose training was interrupted goes on after its last checkpoint, to the same bits; a finished one is left
    alone, and so are its samples, which say what it was trained on.

    Raises:
        LoragenTrainError: ``output_dir`` holds a task or an initialisation made with other settings or another base
            model, a record of it is damaged, a source has too few samples, the base model lacks a target module, or a
            training diverged.
        LoragenInferError: The base model or a sample file cannot be read, the zoo cannot be written, or another process
            works on it.
    """
    output_dir = Path(config.output_dir)
    taken = f"Another process is collecting into {output_dir}; wait for it, or choose another output_dir."
    with locked(output_dir, taken):
        return _collect(config, output_dir)


def _collect(config: CollectConfig, output_dir: Path) -> list[Path]:
    wanted = [task for task in config.tasks if not task.held_out]
    missing = [task for task in wanted if not _is_done(config, task, output_dir)]
    if missing and (output_dir / "initial_adapter").is_dir():
        check_settings(output_dir / "initial_adapter" / "settings.json", shared_settings(config))
    for task in config.tasks:
        if task.held_out or task in missing:
            _write_samples(config, task, output_dir)
    if missing:
        model, tokenizer = _model_with_adapter(config, output_dir)
        precision = decide_precision(config, output_dir)
        for number, task in enumerate(missing, start=1):
            logger.info("Training the adapter of %s (%d of %d) in %s.", task.name, number, len(missing), precision)
            _train_task(config, task, output_dir, model, tokenizer, precision)
    if kept := [task.name for task in wanted if task not in missing]:
        logger.info("There already: the adapters of %s.", ", ".join(kept))
    if missing or (wanted and not (output_dir / "loss_curves.png").is_file()):
        _draw_losses(output_dir / "adapters", output_dir / "loss_curves.png")
    return [output_dir / "adapters" / task.name for task in wanted]


def _is_done(config: CollectConfig, task: CollectTask, output_dir: Path) -> bool:
    folder = output_dir / "adapters" / task.name
    if folder.is_dir():
        check_settings(folder / "training.json", task_settings(config, task))
    return folder.is_dir()


def _write_samples(config: CollectConfig, task: CollectTask, output_dir: Path) -> None:
    source = Source.of(task.name, task.source, task)
    wanted = task.num_train + task.num_test
    samples = read_samples(source, num_samples=wanted, seed=config.seed, purpose="collect")
    rows = list(samples.by_place.values())
    if len(rows) < wanted:
        raise LoragenTrainError(
            f"{task.source} has {len(rows)} different prompts, fewer than the {wanted} asked for; lower num_train or "
            "num_test."
        )
    unused = "" if source.library == "reasoning-gym" else unused_samples(num_duplicates=samples.num_duplicates)
    logger.info("%s: %s%s.", task.name, counted(len(rows), "sample"), unused)
    # Generators may order their samples by difficulty; a shuffle makes train and test alike.
    random.Random(config.seed).shuffle(rows)
    for part, chosen in (("train", rows[: task.num_train]), ("test", rows[task.num_train :])):
        write_jsonl(output_dir / part / f"{task.name}.jsonl", map(asdict, chosen))


def _model_with_adapter(config: CollectConfig, output_dir: Path) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    name = config.base_model
    if locate_model(name, kind="base model").endswith(".gguf"):
        # Unpacked once, and not asked for again: the zoo goes on with the weights that it was begun with.
        name = str(save_base_model(name, output_dir / "base_model").resolve())
    base, tokenizer = load_base_model(name, dtype="float32")
    check_base_model(output_dir, config.base_model, base)
    initial = output_dir / "initial_adapter"
    if not initial.is_dir():
        torch.manual_seed(config.seed)
        _check_target_modules(config, base)
        lora = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=name, **asdict(config.lora))
        fresh = get_peft_model(base, lora)
        with atomic_folder(initial) as part:
            fresh.save_pretrained(str(part))
            known_as = {"base_model_name_or_path": hub_name(config.base_model) or name}
            write_json(part / _CONFIG, {**read_record(part / _CONFIG), **known_as})
            write_json(part / "settings.json", {"settings": shared_settings(config)})
        fresh.unload()
    model = PeftModel.from_pretrained(base, str(initial), is_trainable=True)
    # PEFT asks the hub about a hub name whenever it saves; about a folder it does not.
    model.peft_config["default"].base_model_name_or_path = name
    return model, tokenizer


def _check_target_modules(config: CollectConfig, base: PreTrainedModel) -> None:
    """Name a target module that ``base`` lacks; PEFT keeps silent as long as it has one of them."""
    names = [name for name, _ in base.named_modules()]
    for module in config.lora.target_modules:
        # PEFT's rule for a list: the whole name of a module, or its end from a dot on.
        if not any(f".{name}".endswith(f".{module}") for name in names):
            known = nearest(module, sorted({name.rpartition(".")[2] for name in names}))
            raise LoragenTrainError(f"lora.target_modules names {module!r}, which {config.base_model} lacks{known}.")


def _train_task(
    config: CollectConfig,
    task: CollectTask,
    output_dir: Path,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
) -> None:
    set_peft_model_state_dict(model, load_peft_weights(str(output_dir / "initial_adapter"), device="cpu"))
    sample_file = output_dir / "train" / f"{task.name}.jsonl"
    samples = read_examples(sample_file)
    items = [tokenize_example(tokenizer, sample, max_length=config.training.max_length) for sample in samples]
    begun = {
        "settings": task_settings(config, task),
        "precision": precision,
        "samples_sha256": hashlib.sha256(sample_file.read_bytes()).hexdigest(),
    }
    unfinished = output_dir / "unfinished" / task.name
    begun_file = unfinished / "begun.json"
    if unfinished.is_dir() and (not begun_file.is_file() or read_record(begun_file) != begun):
        logger.warning("%s was begun with other settings or samples; it starts over.", unfinished)
        shutil.rmtree(unfinished)
    write_json(begun_file, begun)
    try:
        trained = train_lora(
            task.name, config.training, config.seed, unfinished, items, model, tokenizer, precision=precision
        )
    except LoragenTrainError:
        # It diverged, and would again.
        _remove(unfinished)
        raise
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    with atomic_folder(output_dir / "adapters" / task.name) as part:
        for checkpoint in checkpoints_of(unfinished):
            # Not what the Trainer adds: its pickled arguments, which nobody should have to trust, and its state.
            (part / checkpoint.name).mkdir()
            shutil.copyfile(checkpoint / _WEIGHTS, part / checkpoint.name / _WEIGHTS)
            # Its settings are the same, but for the base model's name, which is not that on this machine.
            shutil.copyfile(output_dir / "initial_adapter" / _CONFIG, part / checkpoint.name / _CONFIG)
        write_json(part / "training.json", {**begun, "versions": versions, **trained})
    _remove(unfinished)
    logger.info("%s: %.0f s at %.0f tokens/s.", task.name, trained["seconds"], trained["tokens_per_second"])


def _remove(unfinished: Path) -> None:
    shutil.rmtree(unfinished)
    if not any(unfinished.parent.iterdir()):
        unfinished.parent.rmdir()


def _draw_losses(adapters: Path, path: Path) -> None:
    """Draw the loss curves in ``adapters/<task>/training.json``."""
    curves = {file.parent.name: read_record(file)["loss"] for file in sorted(adapters.glob("*/training.json"))}
    named = len(curves) <= _MAX_NAMED
    with saved_figure(path, width=8.6 if named else 6.4, height=4.2) as figure:
        axes = figure.add_subplot()
        for index, (task, rows) in enumerate(curves.items()):
            steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
            style = ("-", "--", ":")[index // 13 % 3]
            axes.plot(steps, losses, style, marker=".", color=colour_of(index), linewidth=1.2, label=label_of(task))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss per response token (nats)")
        axes.set_title(f"Trainings of {counted(len(curves), 'task')}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if named:
            figure.legend(loc="outside right upper", fontsize=7, frameon=False)

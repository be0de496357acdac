"""What all adapters of a zoo have in common: the frozen language model, and the initialisation that they grow from."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lora_tokenizer import LoraAdapter, read_adapter
from loragen_infer.files import atomic_folder, locked, write_json
from loragen_infer.models.base_model import load_base_model, save_base_model
from loragen_infer.models.locate import hub_name, locate_model
from loragen_infer.words import nearest
from loragen_infer.zoo import INITIAL_NAME
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from loragen_train.configs.collect import CollectConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.zoo import records
from loragen_train.zoo.frozen import FrozenModel

__all__ = ["load_frozen"]


def load_frozen(
    config: CollectConfig,
    output_dir: Path,
    fabric: Fabric,
    *,
    base_model: str | None = None,
    accept: Callable[[LoraAdapter], None] | None = None,
) -> FrozenModel:
    """Load the language model of the zoo in ``output_dir``, and make the initialisation where there is none yet.

    Args:
        config: The zoo.
        output_dir: Its folder.
        fabric: Of this process.
        base_model: Where the model lies, if not where its name in ``config`` says.
        accept: Is shown the initialisation before it is written; what it raises leaves the zoo as it was.

    Raises:
        LoragenTrainError: The model is not the one that the zoo was begun with, or lacks a target module.
        LoragenInferError: It cannot be loaded.
    """
    name, training = base_model or config.base_model, config.training
    if locate_model(name, kind="base model").endswith(".gguf"):
        with locked(output_dir, None):
            # Unpacked once, and not asked for again: the zoo goes on with the weights that it was begun with.
            name = str(save_base_model(name, output_dir / "base_model").resolve())
    model, tokenizer = load_base_model(name, device_map=training.device_map)
    digest, source = records.hash_weights(model), base_model or config.base_model
    folder = output_dir / INITIAL_NAME
    # What all processes share is made by one of them.
    with locked(output_dir, None):
        records.check_base_model(output_dir, config.base_model, digest, lies_at=source)
        if not folder.is_dir():
            _check_target_modules(config, model, source)
            _write_initial(config, model, name, folder, accept)
        elif accept is not None:
            accept(read_adapter(folder))
        records.note_base_model(output_dir, config.base_model, digest)
        precision = records.decide_precision(config, output_dir)
    return FrozenModel.of(
        model,
        tokenizer,
        read_adapter(folder).modules,
        precision=precision,
        device=fabric.device if training.device_map is None else None,
        tokens_per_pass=training.tokens_per_pass,
        gradient_checkpointing=training.gradient_checkpointing,
    )


def _write_initial(
    config: CollectConfig,
    model: PreTrainedModel,
    name: str,
    folder: Path,
    accept: Callable[[LoraAdapter], None] | None,
) -> None:
    torch.manual_seed(config.seed)
    fresh = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=name, **asdict(config.lora))
    )
    with atomic_folder(folder) as part:
        fresh.save_pretrained(str(part))
        settings = part / "adapter_config.json"
        known_as = {"base_model_name_or_path": hub_name(config.base_model) or name}
        write_json(settings, {**records.read_record(settings), **known_as})
        write_json(part / "settings.json", {"settings": records.shared_settings(config)})
        if accept is not None:
            accept(read_adapter(part))
    fresh.unload()


def _check_target_modules(config: CollectConfig, model: PreTrainedModel, base_model: str) -> None:
    """Name a target module that ``model`` lacks; PEFT keeps silent as long as it has one of them."""
    names = [name for name, _ in model.named_modules()]
    for module in config.lora.target_modules:
        # PEFT's rule for a list: the whole name of a module, or its end from a dot on.
        if not any(f".{name}".endswith(f".{module}") for name in names):
            known = nearest(module, sorted({name.rpartition(".")[2] for name in names}))
            raise LoragenTrainError(f"lora.target_modules names {module!r}, which {base_model} lacks{known}.")

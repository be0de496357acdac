"""Loads the base language model that adapters belong to: a hub name, a local folder, or a GGUF file."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loragen_infer.errors import LoragenInferError, reason_of
from loragen_infer.files import atomic_folder
from loragen_infer.models.device import as_dtype, check_device
from loragen_infer.models.locate import LOADING, locate_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load_base_model", "save_base_model"]

logger = logging.getLogger(__name__)


def load_base_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: "str | torch.dtype | None" = None,
    device: "str | torch.device" = "cpu",
    device_map: str | dict[str, Any] | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the causal language model called ``name``, in eval mode, and its tokenizer.

    Args:
        name: A folder, a ``.gguf`` file or a hub name.
        revision: Branch, tag or commit on the hub.
        dtype: What its weights are in; None: what they are stored in (unpacked from GGUF: float32).
        device: Where it goes.
        device_map: Spreads it over several devices instead, as in transformers, such as ``"auto"`` (needs accelerate).

    The tokenizer always has a padding token: the end-of-sequence token where it has none of its own.

    Raises:
        LoragenInferError: Nothing is found under that name, what is there is no causal language model, or the device
            cannot be used.
    """
    location = locate_model(name, kind="base model", revision=revision)
    check_device(device)
    try:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise LoragenInferError(
            f"A language model needs {error.name}; install it with: pip install 'loragen-infer[eval]'."
        ) from error

    options: dict[str, Any] = {"dtype": "auto" if dtype is None else as_dtype(dtype), "device_map": device_map}
    which: dict[str, Any] = {"revision": revision} if location == name and revision else {}
    if location.endswith(".gguf"):
        logger.info("Unpacking %s (about half a minute).", location)
        location, which = str(Path(location).parent), {"gguf_file": Path(location).name}
        # Without dequantize the weights may stay packed, which bars the model from training and saving.
        options |= {"quantization_config": GgufConfig(dequantize=True), "dtype": as_dtype(dtype or torch.float32)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **which)
        with LOADING:
            model = AutoModelForCausalLM.from_pretrained(location, **which, **options)
    except (ImportError, MemoryError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise LoragenInferError(f"The base model {name!r} ({location}) cannot be loaded: {reason_of(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.train(False)
    if device_map is None:
        torch.nn.Module.to(model, device)
    return model, tokenizer


def save_base_model(name: str, folder: Path) -> Path:
    """Write the base model called ``name`` as a transformers folder, if there is none yet, and return the folder.

    For a GGUF file, which takes long to read and cannot be named in PEFT's config.
    """
    if folder.is_dir():
        return folder
    model, tokenizer = load_base_model(name)
    with atomic_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    return folder

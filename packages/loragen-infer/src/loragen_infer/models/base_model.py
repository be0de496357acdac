"""Loads the base language model that adapters belong to: a hub name, a local folder, or a GGUF file."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.errors import LoragenInferError
from loragen_infer.files import atomic_folder
from loragen_infer.models.device import check_device
from loragen_infer.models.locate import locate_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load_base_model", "save_base_model"]

logger = logging.getLogger(__name__)


def load_base_model(name: str, *, device: str = "cpu") -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the causal language model called ``name``, in float32 and eval mode on ``device``, and its tokenizer.

    The tokenizer always has a padding token: the end-of-sequence token where it has none of its own.

    Raises:
        LoragenInferError: Nothing is found under that name, what is there is no causal language model, or the device
            cannot be used.
    """
    location = locate_model(name, kind="base model")
    check_device(device)
    try:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise LoragenInferError(
            f"A language model needs {error.name}; install it with: pip install 'loragen-infer[eval]'."
        ) from error

    try:
        if location.endswith(".gguf"):
            model, tokenizer = _load_gguf(Path(location))
        else:
            tokenizer = AutoTokenizer.from_pretrained(location)
            model = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise LoragenInferError(f"The base model {name!r} ({location}) cannot be loaded: {reason}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.train(False)
    torch.nn.Module.to(model, device)
    return model, tokenizer


def save_base_model(name: str, folder: Path) -> Path:
    """Write the base model called ``name`` as an ordinary transformers folder and return it.

    A GGUF file takes long to read and PEFT knows no way to name one, so a zoo trained on such a file keeps the
    unpacked model beside it. A folder that exists is left as it is.
    """
    if folder.is_dir():
        return folder
    model, tokenizer = load_base_model(name)
    with atomic_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    return folder


def _load_gguf(file: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info("Unpacking %s (about half a minute).", file)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # Without dequantize the weights may stay packed, which bars the model from training and saving.
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    return model, tokenizer

"""The README of a generated adapter: what it belongs to, what it was made from, and how to use it.

Its head is the YAML that model hubs read; ``loragen_request`` in it tells a later run what the adapter was made from.
"""

import re
from pathlib import Path

from loragen_infer.generation.prompt_file import Request

__all__ = ["CARD_NAME", "model_card", "read_request_fingerprint"]

CARD_NAME = "README.md"
_MAX_PROMPTS = 20
_MAX_CHARACTERS = 2000


def model_card(
    request: Request,
    *,
    base_model: str | None,
    generator_fingerprint: str,
    request_fingerprint: str,
    scale: float,
    omit_prompts: bool = False,
) -> str:
    """Return the text of the card; with ``omit_prompts`` it does not say what the prompts were.

    Example:
        >>> request = Request(id="sums", prompts=("What is 17 + 25?",))
        >>> card = model_card(
        ...     request, base_model="a/b", generator_fingerprint="0" * 16, request_fingerprint="1" * 16, scale=1.0
        ... )
        >>> card.splitlines()[:3]
        ['---', 'base_model: a/b', 'library_name: peft']
    """
    from huggingface_hub import ModelCardData

    base = base_model or "unknown"
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        tags=["lora", "loragen"],
        loragen_request=request_fingerprint,
        loragen_generator=generator_fingerprint,
    )
    count = f"{len(request.prompts)} prompt{'s' if len(request.prompts) > 1 else ''}"
    return f"""---
{data.to_yaml()}
---

# LoRA adapter generated from {count}

A hypernetwork wrote this adapter from prompts; it was not trained on them. Check it before relying on it:
`loragen-infer verify .`

| | |
|---|---|
| base model | `{_in_table(base)}` |
| generator fingerprint | `{generator_fingerprint}` |
| scale | {scale:g} |

## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, "path/of/this/folder")
```
{"" if omit_prompts else _prompts(request)}"""


def read_request_fingerprint(folder: Path) -> str | None:
    """Return what the adapter in ``folder`` was made from, or None if that is not known."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        found = (metadata_load(folder / CARD_NAME) or {}).get("loragen_request")
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return found if isinstance(found, str) else None


def _prompts(request: Request) -> str:
    shown = [_quote(prompt) for prompt in request.prompts[:_MAX_PROMPTS]]
    if len(request.prompts) > _MAX_PROMPTS:
        shown.append(f"… and {len(request.prompts) - _MAX_PROMPTS} more.\n")
    return "\n".join(["\n## Prompts\n", *shown])


def _quote(prompt: str) -> str:
    """The prompt as a code block, whose fence is longer than any in it."""
    text = prompt if len(prompt) <= _MAX_CHARACTERS else f"{prompt[:_MAX_CHARACTERS]}…"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}\n"


def _in_table(text: str) -> str:
    return text.replace("`", "'").replace("|", "\\|").replace("\n", " ")

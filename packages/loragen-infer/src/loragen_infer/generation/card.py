"""The README of a generated adapter: what it belongs to, what it was made from, and how to use it.

Its head is the YAML that model hubs read; ``loragen_request`` in it tells a later run what the adapter was made from,
and ``loragen_tuned_on`` that no run can make it from prompts alone.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from loragen_infer.generation.prompt_file import Request
from loragen_infer.models.locate import hub_name
from loragen_infer.words import counted

__all__ = ["CARD_NAME", "can_be_made_again", "merged_card", "model_card", "read_request_fingerprint"]

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
    omit_prompts: bool,
    num_tuned_on: int = 0,
    num_tune_steps: int = 0,
) -> str:
    """Return the text of the card; with ``omit_prompts`` it does not say what the prompts were."""

    count = f"{len(request.prompts)} prompt{'s' if len(request.prompts) > 1 else ''}"
    trained = (
        f"then it was tuned on {counted(num_tuned_on, 'sample')} ({counted(num_tune_steps, 'step')})"
        if num_tuned_on
        else "it was not trained on them"
    )
    marks: dict[str, Any] = {"loragen_generator": generator_fingerprint}
    if num_tuned_on:
        marks["loragen_tuned_on"] = num_tuned_on
    return f"""{_head(base_model, request_fingerprint, **marks)}
# LoRA adapter generated from {count}

A hypernetwork wrote this adapter from prompts; {trained}. Check it before relying on it:
`loragen-infer verify .`

- base model: `{base_model or "unknown"}`
- generator fingerprint: `{generator_fingerprint}`
- scale: {scale:g}

{_use(base_model)}{"" if omit_prompts else _prompts(request)}"""


def merged_card(names: Sequence[str], weights: Sequence[float], *, base_model: str | None, fingerprint: str) -> str:
    """Return the text of the card of an adapter that was merged from those called ``names``."""
    parts = "\n".join(f"- {weight:g} times `{name}`" for name, weight in zip(names, weights, strict=True))
    return f"""{_head(base_model, fingerprint)}
# LoRA adapter merged from {counted(len(names), "adapter")}

{parts}

Base model: `{base_model or "unknown"}`. Check it before relying on it: `loragen-infer verify .`

{_use(base_model)}"""


def read_request_fingerprint(folder: Path) -> str | None:
    """Return what the adapter in ``folder`` was made from, or None if that is not known."""
    found = _read_marks(folder).get("loragen_request")
    return found if isinstance(found, str) else None


def can_be_made_again(folder: Path, fingerprint: str) -> bool:
    """Return whether the adapter in ``folder`` was made from the request of that fingerprint, and from no samples.

    False also where its card cannot be read now.
    """
    marks = _read_marks(folder)
    return marks.get("loragen_request") == fingerprint and "loragen_tuned_on" not in marks


def _read_marks(folder: Path) -> dict[str, Any]:
    import yaml
    from huggingface_hub import metadata_load

    try:
        return metadata_load(folder / CARD_NAME) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _head(base_model: str | None, request_fingerprint: str, **marks: Any) -> str:
    # All else is the same on thousands of cards, and YAML is written slowly.
    common = _common_head(base_model, tuple(marks.items()))
    return f"---\n{common}\nloragen_request: '{request_fingerprint}'\n---\n"


@lru_cache(maxsize=32)
def _common_head(base_model: str | None, marks: tuple[tuple[str, Any], ...]) -> str:
    from huggingface_hub import ModelCardData

    # The hub takes names of its own only.
    name = hub_name(base_model) if base_model else None
    return str(ModelCardData(base_model=name, library_name="peft", tags=["lora", "loragen"], **dict(marks)).to_yaml())


def _use(base_model: str | None) -> str:
    return f"""## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base_model or "unknown"!r})
model = PeftModel.from_pretrained(model, "path/of/this/folder")  # or this repository's name
```
"""


def _prompts(request: Request) -> str:
    lines = ["\n## Prompts\n"]
    for prompt in request.prompts[:_MAX_PROMPTS]:
        text = prompt if len(prompt) <= _MAX_CHARACTERS else f"{prompt[:_MAX_CHARACTERS]}…"
        # The fence is longer than any in the prompt.
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
        lines.append(f"{fence}text\n{text}\n{fence}\n")
    if len(request.prompts) > _MAX_PROMPTS:
        lines.append(f"… and {len(request.prompts) - _MAX_PROMPTS} more.\n")
    return "\n".join(lines)

"""The card of a trained generator: what it belongs to, what it was trained on, what it is worth, and how to use it."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loragen_infer.bundle.bundle import GeneratorBundle
from loragen_infer.files import atomic_file, write_json
from loragen_infer.models.locate import hub_name
from loragen_infer.words import counted

__all__ = ["EVALUATION_NAME", "find_evaluation", "generator_card", "write_card"]

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
EVALUATION_NAME = "evaluation.json"
PICTURE_NAME = "evaluation.png"
_MAX_NAMES = 100
# What readers of the results need; the rest says where things lay on the machine that made them.
_RESULTS = ("tasks", "groups", "verdicts", "remarks")
_COLUMNS = {
    # By score: how it is called, and the factor and form that it is shown in.
    "nll": ("NLL per answer token", 1.0, ".3f"),
    "exact_match": ("exact match, %", 100.0, ".0f"),
    "accuracy": ("accuracy, %", 100.0, ".0f"),
    "gap_closed": ("gap closed, %", 100.0, ".0f"),
}


def find_evaluation(bundle_file: Path) -> Path | None:
    """Return the folder with the ``evaluation.json`` of a bundle: its own, or one above it in its experiment."""
    folder = bundle_file.absolute().parent
    folders = [folder, *folder.parents[:2]] if folder.name == "final_model" else [folder]
    return next((place for place in folders if (place / EVALUATION_NAME).is_file()), None)


def write_card(folder: Path, bundle: GeneratorBundle, *, name: str, evaluation: Path | None) -> None:
    """Write the card into ``folder``, and results and picture of ``evaluation``; a card that is there is left.

    ``name`` is what ``from_pretrained`` is given for the model.
    """
    results = None if evaluation is None else _read_results(evaluation / EVALUATION_NAME)
    has_picture = evaluation is not None and results is not None and (evaluation / PICTURE_NAME).is_file()
    if evaluation is not None and results is not None and evaluation.resolve() != folder.resolve():
        write_json(folder / EVALUATION_NAME, results)
        if has_picture:
            with atomic_file(folder / PICTURE_NAME) as part:
                shutil.copyfile(evaluation / PICTURE_NAME, part)
    if not (folder / CARD_NAME).exists():
        with atomic_file(folder / CARD_NAME) as part:
            card = generator_card(bundle, name=name, results=results, has_picture=has_picture)
            part.write_text(card, encoding="utf-8")


def generator_card(
    bundle: GeneratorBundle, *, name: str, results: Mapping[str, Any] | None = None, has_picture: bool = False
) -> str:
    """Return the text of the card; ``results`` are those of an evaluation."""
    from huggingface_hub import ModelCardData

    base = bundle.base_model or "unknown"
    data = ModelCardData(
        # The hub takes names of its own only.
        base_model=hub_name(base) if bundle.base_model else None,
        library_name="loragen-infer",
        tags=["hypernetwork", "loragen", "lora", "peft"],
        loragen_generator=bundle.fingerprint,
    )
    adapter = bundle.layout.config
    modules = ", ".join(f"`{module}`" for module in adapter.target_modules)
    return f"""---
{data.to_yaml()}
---

# Generator of LoRA adapters for {base}

A hypernetwork that writes a LoRA adapter from a few unlabelled prompts of a task, in one forward pass.

- base model: `{base}`
- encoder: {_encoder(bundle)}
- adapters: r {adapter.r}, lora_alpha {adapter.lora_alpha:g}, on {modules}: {bundle.layout.num_values:,} parameters
- generator: {bundle.generator.num_parameters():,} parameters, fingerprint `{bundle.fingerprint}`
- trained on: {_tasks(bundle)}

## Use

```python
from loragen_infer import LoraGenerator

generator = LoraGenerator.from_pretrained({name!r})
adapter = generator.generate(["What is 17 + 25?", "What is 3 + 88?"])
adapter.save_pretrained("my-adapter")  # a PEFT folder
```

Or on the command line: `loragen-infer generate --model {name} --prompt "What is 17 + 25?" --output my-adapter`.
Check an adapter before relying on it: `loragen-infer verify my-adapter`.
{_evaluation(results, has_picture=has_picture)}"""


def _encoder(bundle: GeneratorBundle) -> str:
    parts = []
    if bundle.text_encoder_name is not None:
        revision = f" at revision `{bundle.text_encoder_revision}`" if bundle.text_encoder_revision else ""
        tuned = ", fine-tuned; its weights are in the bundle" if bundle.text_encoder_state is not None else ""
        parts.append(f"`{bundle.text_encoder_name}`{revision}{tuned}")
    if bundle.condition_model_name is not None:
        parts.append(f"states of `{bundle.condition_model_name}` (`{bundle.condition}`)")
    return " and ".join(parts)


def _tasks(bundle: GeneratorBundle) -> str:
    if bundle.training_tasks is None:
        return f"{counted(bundle.stats.count, 'adapter')} of tasks whose names are not known"
    names = bundle.training_tasks.names
    shown = ", ".join(f"`{name}`" for name in names[:_MAX_NAMES])
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return f"{counted(len(names), 'task')} ({counted(bundle.stats.count, 'adapter')}): {shown}{more}"


def _read_results(file: Path) -> dict[str, Any] | None:
    """The results in an evaluation's file, or None, with a warning, where it holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        results = {key: content[key] for key in _RESULTS}
        _tables(results["groups"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s holds no results of an evaluation (%s), so the card has none.", file, error)
        return None
    return results


def _evaluation(results: Mapping[str, Any] | None, *, has_picture: bool) -> str:
    if results is None:
        return ""
    parts = ["\n## Evaluation\n", *_tables(results["groups"])]
    if has_picture:
        parts.append(f"![What the rows score on every task]({PICTURE_NAME})\n")
    parts += [f"- {sentence}" for sentence in [*(verdict["sentence"] for verdict in results["verdicts"])]]
    parts += [f"- {remark}" for remark in results["remarks"]]
    parts.append("\n[…] 95 % interval. NLL: lower is better. Gap closed: (base − row) / (base − own adapter) in NLL.\n")
    return "\n".join(parts)


def _tables(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of every group of tasks."""
    blocks = []
    for group in groups:
        columns = [name for name in _COLUMNS if any(score[name] is not None for score in group["scores"].values())]
        lines = [["row", *(_COLUMNS[name][0] for name in columns)], ["---", *("---:" for _ in columns)]]
        lines += [[row, *(_cell(score, name) for name in columns)] for row, score in group["scores"].items()]
        names = ", ".join(f"`{name}`" for name in group["tasks"])
        title = f"Mean over {len(group['tasks'])} {group['name']} ({names}):\n"
        blocks.append("\n".join([title, *(f"| {' | '.join(cells)} |" for cells in lines), ""]))
    return blocks


def _cell(score: Mapping[str, Any], name: str) -> str:
    _, factor, form = _COLUMNS[name]
    if score[name] is None:
        return "–"
    interval = score[f"{name}_interval"]
    ends = "" if interval is None else f" [{', '.join(format(factor * end, form) for end in interval)}]"
    return format(factor * score[name], form) + ends

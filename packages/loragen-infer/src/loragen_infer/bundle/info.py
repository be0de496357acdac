"""What a bundle holds, as plain values: for people as lines, for scripts as JSON. Loads no encoder."""

from pathlib import Path
from typing import Any

from loragen_infer.bundle.bundle import GeneratorBundle
from loragen_infer.bundle.bundle_file import find_bundle, read_bundle_file

__all__ = ["describe_bundle", "format_description"]


def describe_bundle(path: Path) -> dict[str, Any]:
    """Return everything worth knowing about the bundle at ``path``: strings, numbers, lists and mappings."""
    file = find_bundle(path)
    bundle = GeneratorBundle.load(file)
    layout, adapter = bundle.layout, bundle.layout.config
    return {
        "file": str(file),
        "size_bytes": file.stat().st_size,
        "format_version": bundle.format_version,
        "fingerprint": bundle.fingerprint,
        "base_model": bundle.base_model,
        "condition": bundle.condition,
        "condition_model": {
            "name": bundle.condition_model_name,
            "fingerprint": bundle.condition_model_fingerprint,
        },
        "text_encoder": {
            "name": bundle.text_encoder_name,
            "fine_tuned": bundle.text_encoder_state is not None,
            "revision": bundle.text_encoder_revision,
            "fingerprint": bundle.text_encoder_fingerprint,
        },
        "generator": {
            "num_parameters": bundle.generator.num_parameters(),
            "flops_per_adapter": {f"{count}_prompts": bundle.generator.flops(count) for count in (1, 8)},
            "config": bundle.generator.config.to_dict(),
        },
        "layout": {
            "fingerprint": layout.fingerprint,
            "num_tokens": layout.num_tokens,
            "token_dim": layout.grid[2],
            "grid": list(layout.grid),
            "padding": round(layout.padding, 4),
            "canonical": layout.canonical,
            "num_tensors": len(layout.slots),
            "dtypes": sorted({slot.dtype for slot in layout.slots}),
        },
        "adapter": {
            "num_parameters": layout.num_values,
            "r": adapter.r,
            "lora_alpha": adapter.lora_alpha,
            "target_modules": list(adapter.target_modules),
        },
        "training": {
            "num_checkpoints": bundle.stats.count,
            "tasks": list(bundle.training_tasks.names) if bundle.training_tasks is not None else None,
            "provenance": dict(bundle.provenance),
        },
        "versions": read_bundle_file(file).get("versions", {}),
    }


def format_description(description: dict[str, Any]) -> str:
    """Return the description as YAML."""
    import yaml

    dumped: str = yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=120)
    return dumped.rstrip()

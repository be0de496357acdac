"""Whether an encoder is the one that a bundle was trained with, and where the encoder that a bundle names lies."""

from pathlib import Path

from loragen_infer.bundle.bundle import GeneratorBundle
from loragen_infer.encoder.base import ConditionEncoder
from loragen_infer.errors import LoragenInferError

__all__ = ["check_encoder", "place_of_encoder"]


def check_encoder(bundle: GeneratorBundle, encoder: ConditionEncoder) -> None:
    """Raise LoragenInferError where ``encoder`` gives another condition than the one that ``bundle`` was trained on."""
    record, wanted = encoder.record, bundle.generator.config.condition_dim
    if record["condition"] != bundle.condition:
        raise LoragenInferError(
            f"The encoder {encoder.name!r} gives the condition {record['condition']!r}, but the generator was trained "
            f"on {bundle.condition!r}; use LoraGenerator.from_pretrained, which loads the right one."
        )
    if wanted != encoder.embedding_dim:
        needed = bundle.text_encoder_name or bundle.condition_model_name
        raise LoragenInferError(
            f"The text encoder {encoder.name!r} makes embeddings of {encoder.embedding_dim} values, but the "
            f"generator takes {wanted}; use {needed!r}."
        )
    pinned, found = bundle.text_encoder_fingerprint, record["text_encoder_fingerprint"]
    if pinned is not None and found != pinned:
        at = f" at revision {bundle.text_encoder_revision}" if bundle.text_encoder_revision else ""
        raise LoragenInferError(
            f"The text encoder {record['text_encoder_name']!r} is not the one of training: its content has the "
            f"fingerprint {found}, where the bundle has {pinned}; use {bundle.text_encoder_name!r}{at} as then."
        )
    pinned, found = bundle.condition_model_fingerprint, record["condition_model_fingerprint"]
    if pinned is not None and found != pinned:
        raise LoragenInferError(
            f"The base model {record['condition_model_name']!r} is not the one of training: what it makes of prompts "
            f"({bundle.condition}) has the fingerprint {found}, where the bundle has {pinned}; give "
            f"{bundle.condition_model_name!r} as it was then as condition_model (--condition-model)."
        )


def place_of_encoder(name: str, folder: Path) -> str:
    """Return the encoder's folder as the bundle names it, else one of its name beside the bundle, else the name."""
    place = Path(name).expanduser()
    places = (place, folder / place, folder / place.name)
    return next((str(path) for path in places if (path / "modules.json").is_file()), name)

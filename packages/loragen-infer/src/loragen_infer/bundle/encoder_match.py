"""Whether an encoder is the one that a bundle was trained with, and finding and loading the one that a bundle names."""

from pathlib import Path
from typing import TYPE_CHECKING

from loragen_infer.bundle.bundle import GeneratorBundle
from loragen_infer.encoder.base import ConditionEncoder
from loragen_infer.encoder.condition import Condition, load_encoder
from loragen_infer.errors import LoragenInferError
from loragen_infer.models.device import check_device
from loragen_infer.models.locate import locate_model

if TYPE_CHECKING:
    import torch

__all__ = ["check_encoder", "find_encoder", "load_encoder_of"]


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


def find_encoder(
    bundle: GeneratorBundle, folder: Path, *, device: "str | torch.device" = "cpu", condition_model: str | None = None
) -> None:
    """Raise LoragenInferError where :func:`load_encoder_of` would find no model or no device; loads nothing."""
    check_device(device)
    if bundle.text_encoder_name is not None:
        place = _place_of_encoder(bundle.text_encoder_name, folder)
        locate_model(place, kind="text encoder", revision=bundle.text_encoder_revision)
    if bundle.condition_model_name is not None:
        locate_model(condition_model or bundle.condition_model_name, kind="base model")


def load_encoder_of(
    bundle: GeneratorBundle,
    folder: Path,
    *,
    device: "str | torch.device" = "cpu",
    cache_dir: Path | None = None,
    condition_model: str | None = None,
) -> ConditionEncoder:
    """Return the encoder that ``bundle``, read from ``folder``, names.

    The other arguments and the errors are those of :func:`load_encoder`; ``condition_model`` is by default where the
    bundle says.
    """
    name = bundle.text_encoder_name
    return load_encoder(
        Condition.parse(bundle.condition),
        text_encoder=None if name is None else _place_of_encoder(name, folder),
        condition_model=condition_model or bundle.condition_model_name,
        revision=bundle.text_encoder_revision,
        device=device,
        cache_dir=cache_dir,
        state=bundle.text_encoder_state,
    )


def _place_of_encoder(name: str, folder: Path) -> str:
    """The encoder's folder as the bundle names it, else one of its name beside the bundle, else the name."""
    place = Path(name).expanduser()
    places = (place, folder / place, folder / place.name)
    return next((str(path) for path in places if (path / "modules.json").is_file()), name)

"""Whether every checkpoint of a zoo fits the token grid and survives it, to the bit."""

from pathlib import Path
from typing import Any

from lora_tokenizer import LoraTokenizerError, check_round_trip
from lora_tokenizer.inspecting import RoundTripReport
from loragen_infer.progress import ProgressBar

from loragen_train.analysis.analyze import size_of
from loragen_train.zoo.checkpoints import find_checkpoints

__all__ = ["check_zoo", "lost_in"]


def check_zoo(folder: Path, *, max_tokens: int | str, **options: Any) -> dict[str, Any]:
    """Take every checkpoint of a zoo to at most ``max_tokens`` tokens and back; one that fails stops nothing.

    Args:
        folder: The zoo, as for :func:`loragen_train.analysis.analyze.analyze_zoo`.
        max_tokens: Tokens that there may be.
        options: What :func:`lora_tokenizer.check_round_trip` is to be told besides.

    Returns:
        Plain JSON values: ``num_checkpoints``, ``failures``, why by checkpoint, and ``sizes``, the different ones of
        those that passed.

    Raises:
        LoraTokenizerError: There are no checkpoints.
        LoragenTrainError: ``zoo.json`` lists none.
        LoragenInferError: It is damaged.
    """
    checkpoints = find_checkpoints(folder)
    sizes: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    with ProgressBar("round trips", total=len(checkpoints), unit="checkpoint") as bar:
        for path in checkpoints:
            try:
                proof = check_round_trip(path, max_tokens=max_tokens, **options)
            except LoraTokenizerError as error:
                failures[str(path)] = str(error)
            else:
                if (size := size_of(proof.report, max_tokens)) not in sizes:
                    sizes.append(size)
                if not proof.ok:
                    failures[str(path)] = f"it is not the same after a round trip ({lost_in(proof)}); please report it"
            bar.advance()
    return {"num_checkpoints": len(checkpoints), "failures": failures, "sizes": sizes}


def lost_in(proof: RoundTripReport) -> str:
    """Return what of a checkpoint did not survive, one name after the other."""
    return ", ".join(name for name in ("tokens_equal", "files_equal", "layout_equal") if not getattr(proof, name))

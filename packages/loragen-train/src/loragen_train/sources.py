"""Where the samples of a task come from: a JSON/JSONL file of the user's, or a generator of reasoning-gym."""

from pathlib import Path

from loragen_infer.examples import Example, read_examples

from loragen_train.errors import LoragenTrainError

__all__ = ["load_samples"]

_REASONING_GYM = "reasoning-gym:"


def load_samples(source: str, *, num_samples: int | None, seed: int) -> list[Example]:
    """Return the samples of ``source`` in a fixed order, each prompt once.

    Args:
        source: ``reasoning-gym:NAME``, or the path of a JSON/JSONL file with prompts and responses.
        num_samples: How many to return; ``None`` means all that a file has (a generator needs a number).
        seed: Seed of a generator; a file is read from its start.

    Raises:
        LoragenTrainError: An unknown generator, a missing package, or fewer different prompts than asked for.
        LoragenInferError: A file that cannot be read; see :func:`loragen_infer.examples.read_examples`.
    """
    if source.startswith(_REASONING_GYM):
        if num_samples is None:
            raise LoragenTrainError(f"{source} generates samples without end; say how many.")
        return _from_reasoning_gym(source.removeprefix(_REASONING_GYM), num_samples, seed)
    unique = list({example.prompt: example for example in read_examples(Path(source))}.values())
    if num_samples is not None and len(unique) < num_samples:
        raise LoragenTrainError(
            f"{source} has {len(unique)} different prompts, fewer than the {num_samples} asked for; lower "
            "num_train or num_test."
        )
    return unique[:num_samples]


def _from_reasoning_gym(name: str, num_samples: int, seed: int) -> list[Example]:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise LoragenTrainError(
            f"The source reasoning-gym:{name} needs reasoning-gym; install it with: "
            "pip install 'loragen-train[reasoning-gym]'."
        ) from error
    if name not in DATASETS:
        from loragen_infer.command_line import nearest

        raise LoragenTrainError(f"reasoning-gym has no task {name!r}{nearest(name, DATASETS)}.")
    # Generators repeat themselves in small spaces; a repeated prompt on both sides of a split would be a leak.
    drawn = reasoning_gym.create_dataset(name, size=4 * num_samples, seed=seed)
    unique: dict[str, Example] = {}
    for row in drawn:
        unique.setdefault(row["question"], Example(prompt=row["question"], response=str(row["answer"])))
        if len(unique) == num_samples:
            return list(unique.values())
    raise LoragenTrainError(
        f"reasoning-gym:{name} gave {len(unique)} different prompts in {4 * num_samples} draws, fewer than the "
        f"{num_samples} asked for; lower num_train or num_test."
    )

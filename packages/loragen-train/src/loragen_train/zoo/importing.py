"""Makes a zoo of adapters that exist already: checks every one, writes the samples of its task, and the manifest.

Adapters stay where they are. Either everything can be used, or nothing is written and all that cannot is named at once,
or (``skip_unusable``) it is noted in the manifest and the rest goes on.
"""

import logging
import random
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from lora_tokenizer import LoraTokenizerError, find_adapters, read_adapter, write_adapter
from loragen_infer.errors import LoragenInferError
from loragen_infer.files import locked, write_jsonl, writing
from loragen_infer.models.locate import hub_name
from loragen_infer.progress import ProgressBar
from loragen_infer.samples import prompt_hash
from loragen_infer.words import counted
from loragen_infer.zoo import MANIFEST_NAME, SampleFile, ZooManifest, ZooTask, path_in_zoo

from loragen_train.configs.importing import ImportConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.prompts.combine import unused_samples
from loragen_train.prompts.sources import read_samples
from loragen_train.zoo.grouping import SHARED_COSINE, AdapterFacts, choose_group, facts_of, mean_cosine
from loragen_train.zoo.hub import fetch_adapters
from loragen_train.zoo.table import ImportRow, read_rows

__all__ = ["import_zoo"]

logger = logging.getLogger(__name__)

_BIN, _SAFETENSORS = "adapter_model.bin", "adapter_model.safetensors"
_ERRORS = (LoragenTrainError, LoragenInferError, LoraTokenizerError)


def import_zoo(config: ImportConfig, *, skip_unusable: bool = False, overwrite: bool = False) -> ZooManifest:
    """Write the zoo that ``config`` describes and return its manifest.

    Args:
        config: What to import.
        skip_unusable: Note what cannot be used in the manifest, as the ``failure`` of its task, instead of stopping.
        overwrite: Replace a manifest that is there.

    Raises:
        LoragenTrainError: There is a zoo already, or something cannot be used; the message has all of it, a line each.
        LoragenInferError: The table cannot be read, the folder cannot be written, or another process works on it.
    """
    rows, problems = read_rows(config)
    output_dir = Path(config.output_dir)
    taken = f"Another process is making the zoo {output_dir}; wait for it, or choose another output_dir."
    with locked(output_dir, taken):
        if (output_dir / MANIFEST_NAME).exists() and not overwrite:
            raise LoragenTrainError(
                f"{output_dir} has a {MANIFEST_NAME} already; choose another output_dir, or replace it with "
                "--overwrite."
            )
        staging = output_dir / "unfinished_import"
        try:
            _remove(staging)
            return _import(config, rows, problems, output_dir, staging, skip_unusable)
        finally:
            _remove(staging)


def _import(
    config: ImportConfig,
    rows: Sequence[ImportRow],
    problems: Sequence[str],
    output_dir: Path,
    staging: Path,
    skip_unusable: bool,
) -> ZooManifest:
    failures: dict[str, str] = {}
    places = _locate(rows, config.num_workers, failures)
    facts, adapters = _check_adapters(places, config, staging, failures)
    samples = _stage_samples(rows, config, staging, failures)
    usable = {name: fact for name, fact in facts.items() if name not in failures}
    unusable = [*problems, *(f"{name}: {reason}" for name, reason in failures.items())]
    undecided: list[str] = []
    kept, base_model = list(usable), config.base_model or ""
    try:
        kept = choose_group(usable, config.keep) if usable else []
        base_model = config.base_model or _base_model({name: usable[name] for name in kept})
    except LoragenTrainError as error:
        undecided = [str(error)]
    _refuse([] if skip_unusable else unusable, undecided)
    if not kept:
        raise LoragenTrainError("\n".join(["No adapter can be used:", *(unusable or ["the tasks name none."])]))
    for problem in unusable:
        logger.warning("Left out: %s", problem)
    for name in [name for name in usable if name not in kept]:
        failures[name] = f"Its adapter ({usable[name].words}) does not fit those kept ({usable[kept[0]].words})."
        logger.warning("Left out: %s: %s", name, failures[name])
    manifest = ZooManifest(
        base_model=base_model,
        lora=dict(usable[kept[0]].settings),
        canonical=_canonical([usable[name] for name in kept]),
        tasks=[
            ZooTask(
                name=row.name,
                sources=[location for location in (row.prompts, row.test) if location is not None],
                held_out=row.held_out,
                prompts=samples.get(row.name, (None, None))[0],
                test=samples.get(row.name, (None, None))[1],
                adapters=adapters[row.name] if row.name in kept else [],
                failure=failures.get(row.name),
            )
            for row in rows
        ],
        folder=output_dir,
    )
    _install(staging, output_dir)
    manifest.write()
    return manifest


def _refuse(unusable: Sequence[str], undecided: Sequence[str]) -> None:
    if not unusable and undecided:
        raise LoragenTrainError("\n".join(undecided))
    if unusable:
        raise LoragenTrainError(
            f"{counted(len(unusable), 'problem')}, and nothing is written; mend all, or leave out what cannot be used "
            "with --skip-unusable:\n" + "\n".join([*unusable, *undecided])
        )


def _locate(rows: Sequence[ImportRow], num_workers: int, failures: dict[str, str]) -> dict[str, list[Path]]:
    """Every task's adapters, in natural order; those of the hub are fetched."""
    repositories = {row.name: row.repository for row in rows if row.repository is not None}
    folders, problems = fetch_adapters(repositories.values(), num_workers=num_workers)
    places: dict[str, list[Path]] = {}
    for row in rows:
        repository, path = repositories.get(row.name), row.local_adapter
        if repository in problems:
            failures[row.name] = problems[repository]
        elif repository is not None:
            places[row.name] = [_adapter_itself(folders[repository])]
        elif path is not None:
            try:
                places[row.name] = find_adapters(path.resolve() if ".." in path.parts else path)
            except LoraTokenizerError as error:
                failures[row.name] = f"{error}."
        elif row.adapter is not None:
            failures[row.name] = f"{row.adapter!r:.200} does not exist; give a folder, a file or a repository's id."
        elif not row.held_out:
            failures[row.name] = "It names no adapter, which only a held-out task may do without."
    return places


def _adapter_itself(snapshot: Path) -> Path:
    """The folder of a repository, or its file where other adapters, which nobody asked for, lie in folders below."""
    if find_adapters(snapshot) == [snapshot]:
        return snapshot
    return next(file for name in (_SAFETENSORS, _BIN) if (file := snapshot / name).is_file())


def _check_adapters(
    places: Mapping[str, Sequence[Path]], config: ImportConfig, staging: Path, failures: dict[str, str]
) -> tuple[dict[str, AdapterFacts], dict[str, list[str]]]:
    """Facts of each task's last adapter, and what the manifest calls its adapters."""
    output_dir = Path(config.output_dir)
    facts: dict[str, AdapterFacts] = {}
    named: dict[str, list[str]] = {}
    with ProgressBar("check", total=sum(map(len, places.values())), unit="adapter") as bar:
        for task, paths in places.items():
            names: list[str] = []
            try:
                for number, path in enumerate(paths, start=1):
                    copy = staging / "adapters" / task / f"adapter-{number}"
                    fact = _check_adapter(path, copy, config.lora_alpha)
                    bar.advance()
                    if task in facts and facts[task].group != fact.group:
                        raise LoragenTrainError(
                            f"{path} is {fact.words}, and another checkpoint of the task is {facts[task].words}; all "
                            "must be alike."
                        )
                    facts[task] = fact
                    names.append(path_in_zoo(copy, staging) if copy.exists() else path_in_zoo(path, output_dir))
                named[task] = names
            except _ERRORS as error:
                failures[task] = f"{str(error).rstrip('.')}."
    return facts, named


def _check_adapter(path: Path, copy: Path, lora_alpha: float | None) -> AdapterFacts:
    """Read one adapter; one that others could not read as it is, or not alike, is written to ``copy``."""
    adapter = read_adapter(path, allow_bin=True, lora_alpha=lora_alpha)
    is_pickle = path.suffix == ".bin" or ((path / _BIN).is_file() and not (path / _SAFETENSORS).is_file())
    if is_pickle or lora_alpha is not None:
        write_adapter(adapter, copy)
    return facts_of(adapter)


def _base_model(facts: Mapping[str, AdapterFacts]) -> str:
    """The one base model that adapters name."""
    named = {name: hub_name(fact.base_model) or fact.base_model for name, fact in facts.items() if fact.base_model}
    counts = Counter(named.values())
    if len(counts) == 1:
        return next(iter(counts))
    if not facts:
        return ""
    listed = ", ".join(
        f"{model} ({counted(number, 'task')}, such as {next(name for name in named if named[name] == model)})"
        for model, number in counts.most_common()
    )
    found = f"name {len(counts)} base models: {listed}" if counts else "do not name their base model"
    raise LoragenTrainError(f"The adapters {found}; say with --base-model which it is.")


def _canonical(facts: Sequence[AdapterFacts]) -> Literal["none", "svd"]:
    if len(facts) < 2:
        return "none"
    cosine = mean_cosine([fact.sample for fact in facts])
    shown = f"The A matrices of {len(facts)} tasks have a mean cosine of {cosine:.2f}"
    if cosine >= SHARED_COSINE:
        logger.info("%s: they share an initialisation.", shown)
        return "none"
    logger.info(
        "%s, below %s: they grew from unrelated initialisations, so %s says canonical: svd, and fit compares them in "
        "their canonical form.",
        *(shown, SHARED_COSINE, MANIFEST_NAME),
    )
    return "svd"


def _stage_samples(
    rows: Sequence[ImportRow], config: ImportConfig, staging: Path, failures: dict[str, str]
) -> dict[str, tuple[SampleFile, SampleFile | None]]:
    """Prompts and test samples of each task, one task in memory at a time."""
    tests: dict[str, SampleFile] = {}
    hashes: set[str] = set()
    for row in rows:
        if row.test is not None:
            try:
                source = row.source(row.test, split=row.test_split)
                test = read_samples(source, num_samples=None, seed=config.seed, purpose="collect")
            except _ERRORS as error:
                failures.setdefault(row.name, str(error))
                continue
            hashes |= {prompt_hash(example.prompt) for example in test.by_place.values()}
            file = staging / "test" / f"{row.name}.jsonl"
            write_jsonl(file, map(asdict, test.by_place.values()))
            tests[row.name] = SampleFile.of(file, staging)
    staged: dict[str, tuple[SampleFile, SampleFile | None]] = {}
    for row in rows:
        try:
            prompts, test_of_own = _stage_prompts(row, config, staging, hashes)
        except _ERRORS as error:
            failures.setdefault(row.name, str(error))
        else:
            staged[row.name] = prompts, tests.get(row.name, test_of_own)
    return staged


def _stage_prompts(
    row: ImportRow, config: ImportConfig, staging: Path, test_hashes: Collection[str]
) -> tuple[SampleFile, SampleFile | None]:
    num_test = config.num_test if row.test is None else 0
    most = None if config.num_samples is None else config.num_samples + num_test
    source = row.source(row.prompts)
    samples = read_samples(source, num_samples=most, seed=config.seed, purpose="prepare", leave_out=test_hashes)
    rows = samples.by_place
    answered = [place for place, example in rows.items() if example.response.strip()]
    if num_test and answered and (len(answered) < num_test or len(rows) == num_test):
        raise LoragenTrainError(
            f"{row.prompts} has {counted(len(rows), 'different prompt')}, {len(answered)} of them with a response, too "
            f"few to keep num_test={num_test} apart and have one left; lower it, or add samples."
        )
    if not rows:
        raise LoragenTrainError(f"All prompts of {row.prompts} are test examples of the zoo; add others.")
    # The task's name is part of the seed, so that the choice does not depend on the other tasks.
    chosen = set(random.Random(f"{config.seed}/{row.name}").sample(answered, num_test if answered else 0))
    files = []
    for part, places in (("train", [place for place in rows if place not in chosen]), ("test", sorted(chosen))):
        file = staging / part / f"{row.name}.jsonl"
        if places:
            write_jsonl(file, (asdict(rows[place]) for place in places))
            files.append(SampleFile.of(file, staging))
    unused = unused_samples(num_duplicates=samples.num_duplicates, num_test_examples=samples.num_left_out)
    test = f" and {counted(len(chosen), 'test sample')}" if chosen else ""
    logger.info("%s: %s%s%s.", row.name, counted(len(rows) - len(chosen), "prompt"), test, unused)
    return files[0], files[1] if chosen else None


def _install(staging: Path, output_dir: Path) -> None:
    """Move all that was staged to its place; zoo.json, which is written last, makes it count."""
    with writing(output_dir):
        for file in sorted(path for path in staging.rglob("*") if path.is_file()):
            target = output_dir / file.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)


def _remove(folder: Path) -> None:
    if folder.exists():
        with writing(folder):
            shutil.rmtree(folder)

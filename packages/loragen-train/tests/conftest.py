"""Small real parts for the tests: a tiny Llama with a byte tokenizer, adapters of a tiny shape, prompts as prepared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["SWANLAB_MODE"] = "disabled"

import pytest
import torch
import yaml
from hypothesis import settings
from lora_tokenizer import AdapterConfig, LoraAdapter, write_adapter
from loragen_infer.zoo import SampleFile, ZooManifest, ZooTask
from loragen_train.cli.main import main
from loragen_train.configs.collect import CollectConfig, CollectTask, LoraSettings, LoraTraining
from loragen_train.configs.importing import ImportConfig
from loragen_train.configs.joint import JointConfig
from loragen_train.configs.prepare import PrepareConfig
from loragen_train.prompts.combine import prepare
from loragen_train.zoo.collect import collect
from loragen_train.zoo.importing import import_zoo
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
# No timings are asserted, not even hypothesis' own: a machine may be busy.
settings.register_profile("loragen-train", deadline=None)
settings.load_profile("loragen-train")
transformers_logging.disable_progress_bar()

QUESTIONS = {
    "sums": [f"What is {number} + {number + 7}?" for number in range(48)],
    "spelling": [f"Spell the word number {number} of the dictionary backward." for number in range(48)],
    "capitals": [f"Name the capital of country {number} in the atlas." for number in range(48)],
    "more": [f"How much more is {number} than nothing?" for number in range(48)],
    "last": [f"What is the last digit of {number} squared?" for number in range(48)],
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_samples(path: Path, prompts: list[str]) -> Path:
    """A file of samples; every response is different."""
    return write_rows(path, [{"prompt": prompt, "response": f"answer {index}"} for index, prompt in enumerate(prompts)])


def make_adapter(seed: int, *, r: int = 2, num_layers: int = 3, width: int = 32, **settings: Any) -> LoraAdapter:
    """Random A and B for q_proj and v_proj of ``num_layers`` layers."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(num_layers):
        for module, num_out in {"q_proj": width, "v_proj": 16}.items():
            stem = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_"
            tensors[f"{stem}A.weight"] = torch.randn(r, width, generator=random)
            tensors[f"{stem}B.weight"] = torch.randn(num_out, r, generator=random)
    fields = {"lora_alpha": 4, "target_modules": ("q_proj", "v_proj"), "task_type": "CAUSAL_LM", **settings}
    return LoraAdapter(config=AdapterConfig(r=r, **fields), tensors=tensors)


def write_adapters(root: Path, tasks: tuple[str, ...], num_checkpoints: int, **shape: int) -> None:
    """Checkpoints of ``tasks`` below ``root / "adapters"``."""
    for number, task in enumerate(tasks):
        for checkpoint in range(1, num_checkpoints + 1):
            # Checkpoints of one task differ little beside the distance between tasks, as those of one training do.
            adapter, noise = (make_adapter(seed, **shape) for seed in (number, 100 * checkpoint + number))
            tensors = {name: value + 0.1 * noise.tensors[name] for name, value in adapter.tensors.items()}
            noisy = LoraAdapter(config=adapter.config, tensors=tensors)
            write_adapter(noisy, root / "adapters" / task / f"checkpoint-{checkpoint}")


def make_zoo(root: Path, tasks: tuple[str, ...] = ("sums", "spelling"), num_checkpoints: int = 2) -> dict[str, Any]:
    """Checkpoints and prepared prompts of ``tasks`` below ``root``; returns the ``data`` section of a fit config."""
    write_adapters(root, tasks, num_checkpoints)
    sources = [write_samples(root / "samples" / f"{task}.jsonl", QUESTIONS[task]) for task in tasks]
    prepare(sources, PrepareConfig(output_dir=str(root / "data"), samples_per_prompt=2, test_ratio=0.25))
    return {
        "prompts_dir": str(root / "data"),
        "tasks": [{"name": task, "checkpoint_dir": str(root / "adapters" / task)} for task in tasks],
        "batch_size": 2,
        "prompts_per_condition": 4,
        "cache_dir": str(root / "cache"),
    }


def make_manifest(
    root: Path,
    tasks: tuple[str, ...] = ("sums", "spelling"),
    *,
    num_checkpoints: int = 2,
    base_model: Path | None = None,
    **changes: dict[str, Any],
) -> ZooManifest:
    """A zoo with a ``zoo.json`` in ``root``: of each task 40 samples to train on and 8 to test; ``changes`` by task.

    With a ``base_model`` the adapters are of the shape of the tiny Llama's.
    """
    write_adapters(root, tasks, num_checkpoints, num_layers=3 if base_model is None else 2)
    listed = []
    for name in tasks:
        train = write_samples(root / "train" / f"{name}.jsonl", QUESTIONS[name][:40])
        test = write_samples(root / "test" / f"{name}.jsonl", QUESTIONS[name][40:])
        files = {"prompts": SampleFile.of(train, root), "test": SampleFile.of(test, root)}
        adapters = [f"adapters/{name}/checkpoint-{number}" for number in range(1, num_checkpoints + 1)]
        listed.append(ZooTask(**{"name": name, **files, "adapters": adapters, **changes.get(name, {})}))
    manifest = ZooManifest(base_model=str(base_model or "tiny"), tasks=listed, folder=root)
    manifest.write()
    return manifest


def read_weights(folder: Path) -> dict[str, bytes]:
    """The bytes of every adapter at and below ``folder``, by its place there."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("adapter_model.safetensors")}


def collect_process(config: CollectConfig, *words: str, code: str = "", **variables: str) -> subprocess.Popen[str]:
    """``loragen-train collect`` in a process of its own, with ``code`` before it."""
    start = (
        f"import sys\n{code}\n"
        "from loragen_train.cli.main import main\n"
        "sys.exit(main(['collect', '--config', *sys.argv[1:]]))\n"
    )
    file = Path(config.output_dir).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(asdict(config)), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **variables}
    command = [sys.executable, "-c", start, str(file), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_cli(*words: str) -> int:
    """The exit code of ``loragen-train`` with ``words``, whichever way it ends."""
    try:
        return main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The builders above, since tests cannot import a conftest."""
    return SimpleNamespace(
        adapter=make_adapter,
        cli=run_cli,
        collect=collect_process,
        manifest=make_manifest,
        read=read_rows,
        rows=write_rows,
        samples=write_samples,
        weights=read_weights,
        zoo=make_zoo,
    )


@pytest.fixture(scope="session")
def questions() -> dict[str, list[str]]:
    return QUESTIONS


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Llama of 2 layers, one token a byte, without a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    special = ["</s>", "<pad>"]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def collect_config(tmp_path_factory, make, questions, tiny_lm) -> CollectConfig:
    """Two tasks to train and one held out; dropout, so that the seed of the training matters too."""
    root = tmp_path_factory.mktemp("collect")
    files = {name: str(make.samples(root / f"{name}.jsonl", questions[name])) for name in ("sums", "spelling")}
    return CollectConfig(
        base_model=str(tiny_lm),
        output_dir=str(root / "zoo"),
        tasks=[
            CollectTask(name="sums", source=files["sums"], num_train=16, num_test=4),
            CollectTask(name="spelling", source=files["spelling"], num_train=16, num_test=4),
            CollectTask(name="gcd", source="reasoning-gym:gcd", num_train=16, num_test=4, held_out=True),
        ],
        lora=LoraSettings(r=2, lora_alpha=4, lora_dropout=0.1),
        training=LoraTraining(
            max_steps=11, batch_size=4, learning_rate=1e-2, save_every=2, keep_last=3, max_length=200, precision="fp32"
        ),
        seed=3,
    )


@pytest.fixture(scope="session")
def collected(collect_config) -> SimpleNamespace:
    return SimpleNamespace(root=Path(collect_config.output_dir), folders=collect(collect_config))


@pytest.fixture
def collect_yaml(questions: dict[str, list[str]], tiny_lm: Path, tmp_path: Path) -> str:
    """A file of settings that trains one adapter, for two steps, into ``zoo``."""
    content = {
        "base_model": str(tiny_lm),
        "output_dir": str(tmp_path / "zoo"),
        "tasks": [
            {
                "name": "sums",
                "source": str(write_samples(tmp_path / "sums.jsonl", questions["sums"])),
                "num_train": 8,
                "num_test": 2,
            }
        ],
        "training": {"max_steps": 2, "save_every": 1, "precision": "fp32"},
    }
    file = tmp_path / "collect.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="session")
def joint_collection(collect_config, tmp_path_factory) -> CollectConfig:
    """A zoo of those tasks with a joint adapter in two folds."""
    config = replace(
        collect_config,
        output_dir=str(tmp_path_factory.mktemp("collected") / "zoo"),
        lora=replace(collect_config.lora, lora_dropout=0.0),
        joint=True,
        joint_steps=7,
        joint_folds=2,
    )
    collect(config)
    return config


@pytest.fixture
def joint_config(joint_collection, tmp_path) -> JointConfig:
    """For the adapters of that zoo, imported without what collect knows of them."""
    source, zoo = Path(joint_collection.output_dir), tmp_path / "zoo"
    rows = [
        {"name": task.name, "prompts": str(source / "train" / f"{task.name}.jsonl"), "held_out": task.held_out}
        | {"test": str(source / "test" / f"{task.name}.jsonl")}
        | ({} if task.held_out else {"adapter": str(source / "adapters" / task.name)})
        for task in joint_collection.tasks
    ]
    (tmp_path / "table.json").write_text(json.dumps(rows))
    import_zoo(ImportConfig(table=str(tmp_path / "table.json"), output_dir=str(zoo)))
    return JointConfig(zoo=str(zoo), steps=7, folds=2, training=joint_collection.training, seed=joint_collection.seed)

"""An evaluation of two tasks on a tiny language model, without and with all that a row can need."""

import dataclasses
import json

import pytest
from lora_tokenizer import read_adapter, write_adapter
from loragen_infer import GeneratorBundle, LoraGenerator
from loragen_infer.bundle import TrainingTasks, find_bundle
from loragen_infer.evaluation.chart import draw_chart
from loragen_infer.evaluation.config import EvaluateConfig, EvaluateTask, TrainingTask
from loragen_infer.evaluation.task_means import TASK_MEANS_NAME, TaskMeansWriter
from loragen_infer.samples import prompt_hash


@pytest.fixture
def rows():
    def write(path, *lines):
        path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(autouse=True)
def quick(monkeypatch, encoder):
    """One encoder for all evaluations, and no picture; what is about these asks for :func:`picture`."""

    def from_pretrained(path, *, device, condition_model=None):
        return LoraGenerator(GeneratorBundle.load(find_bundle(path)), encoder, device=device)

    monkeypatch.setattr(LoraGenerator, "from_pretrained", from_pretrained)
    monkeypatch.setattr("loragen_infer.evaluation.run.draw_chart", lambda *_: None)


@pytest.fixture
def picture(quick, monkeypatch):
    monkeypatch.setattr("loragen_infer.evaluation.run.draw_chart", draw_chart)


@pytest.fixture
def config(zoo, tmp_path, rows):
    tests = [{"prompt": f"say {word}", "response": word} for word in ("ab", "cd", "ef")]
    prompts = rows(
        tmp_path / "prompts.jsonl", {"task": "one", "prompt": "say gh"}, {"task": "other", "prompt": "not this one"}
    )
    tasks = [
        EvaluateTask(
            name="one", test=rows(tmp_path / "one.jsonl", *tests), prompts=prompts, adapter=str(zoo.adapters[0])
        ),
        EvaluateTask(
            name="two",
            test=rows(tmp_path / "two.jsonl", *tests[:2]),
            prompts=rows(tmp_path / "raw.jsonl", {"text": "count 1 2"}),
        ),
    ]
    return EvaluateConfig(
        model=str(zoo.experiment),
        base_model=str(zoo.model),
        tasks=tasks,
        output_dir=str(tmp_path / "r"),
        num_resamples=200,
    )


@pytest.fixture
def trained(zoo):
    """Writes a bundle that knows its two training tasks, and the samples ``seen`` of the first."""

    def write(folder, *, seen=("say it",)):
        hashes = {"one": frozenset(map(prompt_hash, seen)), "three": frozenset([prompt_hash("count to ten")])}
        tasks = TrainingTasks(names=("one", "three"), prompt_hashes=hashes)
        folder.mkdir(exist_ok=True)
        return str(dataclasses.replace(zoo.bundle, training_tasks=tasks).save(folder / "generator.safetensors"))

    return write


@pytest.fixture
def write_means(zoo, encoder):
    """Writes the means of those training tasks, beside the bundle."""
    layout = zoo.bundle.layout
    sizes = {"num_tokens": layout.num_tokens, "token_dim": layout.token_dim}

    def write(folder, *, names=("one", "three")):
        with TaskMeansWriter(folder / TASK_MEANS_NAME, **sizes) as writer:
            for name, prompt, adapter in zip(names, ("say it", "count to ten"), zoo.adapters, strict=True):
                writer.add(name, encoder.encode([prompt, f"{prompt}!"]), layout.encode(read_adapter(adapter)))

    return write


@pytest.fixture
def full(config, zoo, tmp_path, rows, trained):
    """Every row there is: shots, training tasks, a joint adapter, an initialisation, choices."""
    initial = read_adapter(zoo.adapters[0])
    zeros = {name: tensor * ("lora_A" in name) for name, tensor in initial.tensors.items()}
    initial = dataclasses.replace(initial, tensors=zeros)
    shots = rows(
        tmp_path / "shots.jsonl", *[{"prompt": f"say {word}", "response": word} for word in ("gh", "ij", "kl")]
    )
    tasks = [dataclasses.replace(task, shots=shots, choices=["ab", "cd", "ef"]) for task in config.tasks]
    training = [
        TrainingTask(
            name=name, prompts=rows(tmp_path / f"{name}.prompts.jsonl", {"prompt": prompt}), adapter=str(folder)
        )
        for name, prompt, folder in zip(("one", "three"), ("say it", "count to ten"), zoo.adapters, strict=True)
    ]
    return dataclasses.replace(
        config,
        model=trained(tmp_path / "trained"),
        tasks=tasks,
        training_tasks=training,
        joint_adapter=str(zoo.adapters[1]),
        initial_adapter=str(write_adapter(initial, tmp_path / "initial_adapter")),
        num_shots=2,
        tune_folds=0,
    )

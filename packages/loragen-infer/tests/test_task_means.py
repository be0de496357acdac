"""Task means on disk: written and read a task at a time, whole or not at all."""

import subprocess
import sys

import pytest
import torch
from loragen_infer import LoragenInferError
from loragen_infer.evaluation.task_means import TASK_MEANS_NAME, TaskMeansWriter, read_task_means
from safetensors.torch import load_file


def write(folder, tasks, *, shape=(6, 4)):
    with TaskMeansWriter(folder / TASK_MEANS_NAME, num_tokens=shape[0], token_dim=shape[1]) as writer:
        for name, prompts, tokens in tasks:
            writer.add(name, prompts, tokens)


def make_tasks(count, *, num_prompts=3):
    random = torch.Generator().manual_seed(0)
    return [
        (f"Aufgabe {i} ü", torch.randn(num_prompts + i, 5, generator=random), torch.randn(6, 4, generator=random))
        for i in range(count)
    ]


def test_task_means_come_back_as_they_were_written(tmp_path):
    tasks = make_tasks(4)
    write(tmp_path, tasks)
    means = read_task_means(tmp_path / "generator.safetensors")
    assert means.names == tuple(name for name, _, _ in tasks)
    for index, (_, prompts, tokens) in enumerate(tasks):
        assert torch.equal(means.token_means[index], tokens)
        assert torch.equal(means.prompt_embeddings[index], prompts)
        assert torch.equal(means.condition_means[index], prompts.mean(dim=0))
    # Any reader of the format reads the file.
    assert load_file(tmp_path / TASK_MEANS_NAME)["token_means"].shape == (4, 6, 4)


def test_of_very_many_prompts_some_are_kept_and_the_mean_of_all(tmp_path):
    ((name, prompts, tokens),) = make_tasks(1, num_prompts=1000)
    write(tmp_path, [(name, prompts, tokens)])
    means = read_task_means(tmp_path / "generator.pt")
    assert len(means.prompt_embeddings[0]) == 256
    assert torch.equal(means.condition_means[0], prompts.mean(dim=0))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (("a", torch.ones(2, 5), torch.ones(6, 4)), "have the task 'a' twice"),
        (("b", torch.ones(2, 5), torch.ones(4, 6)), r"of 'b' have tokens \(4, 6\)"),
        (("b", torch.ones(2, 5), torch.full((6, 4), torch.nan)), "of 'b' hold NaN or Inf"),
        (("b", torch.ones(0, 5), torch.ones(6, 4)), "of 'b' hold NaN or Inf, or are of no prompt"),
    ],
)
def test_a_task_that_is_no_good_is_named_and_no_file_appears(task, message, tmp_path):
    with pytest.raises(LoragenInferError, match=message):
        write(tmp_path, [("a", torch.ones(2, 5), torch.ones(6, 4)), task])
    with pytest.raises(LoragenInferError, match="would hold no task"):
        write(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path, make_tasks(2))
    path = tmp_path / TASK_MEANS_NAME
    whole = path.read_bytes()
    for damage in (whole[:100], whole[:-9], whole.replace(b'["', b'{"')):
        path.write_bytes(damage)
        with pytest.raises(LoragenInferError, match=r"task_means\.safetensors has no readable task means"):
            read_task_means(tmp_path / "generator.safetensors")


def test_many_large_tasks_are_written_in_the_memory_of_one(tmp_path):
    program = f"""
import resource, torch
from pathlib import Path
from loragen_infer.evaluation.task_means import TaskMeansWriter
task = torch.ones(4096, 512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with TaskMeansWriter(Path({str(tmp_path / TASK_MEANS_NAME)!r}), num_tokens=4096, token_dim=512) as writer:
    for index in range(12):
        writer.add(str(index), torch.ones(8, 5), task)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    written = (tmp_path / TASK_MEANS_NAME).stat().st_size
    assert written > 100e6
    assert int(done.stdout) * 1024 < 40e6

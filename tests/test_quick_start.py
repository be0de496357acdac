"""The README's own commands and code, and what they leave behind."""

import json
import re

import pytest
import torch
from lora_tokenizer import find_adapters, read_adapter
from loragen_infer import GeneratorBundle, LoraGenerator
from loragen_infer.samples import prompt_hash, read_examples
from loragen_infer.zoo import ZooManifest
from quick_start import ROOT, Workspace, readme_block
from safetensors.torch import load_file


def test_the_generated_adapter_loads_in_peft_with_no_missing_and_no_unexpected_key(workspace: Workspace) -> None:
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(workspace.path / "zoo/base_model")
    model = PeftModel.from_pretrained(base, str(workspace.path / "my-adapter"))
    loaded = get_peft_model_state_dict(model)
    written = load_file(workspace.path / "my-adapter/adapter_model.safetensors")
    assert loaded.keys() == written.keys()
    assert all(torch.equal(loaded[name], written[name]) for name in written)
    inputs = torch.arange(1, 9)[None]
    with torch.inference_mode():
        adapted = model(inputs).logits
        with model.disable_adapter():
            plain = model(inputs).logits
    assert not torch.allclose(adapted, plain, atol=1e-3)


def test_the_readme_code_runs_on_the_generated_adapter(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = readme_block("use-adapter").replace("demo_output/zoo", "zoo").replace("demo_output/adapter", "my-adapter")
    monkeypatch.chdir(workspace.path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_checkpoint_of_the_zoo_grew_from_one_initialisation(workspace: Workspace) -> None:
    start = read_adapter(workspace.path / "zoo/initial_adapter")
    paths = find_adapters(workspace.path / "zoo/adapters")
    assert sorted({path.parent.name for path in paths}) == ["capitals", "sums"]
    assert len(paths) == 4
    for path in paths:
        adapter = read_adapter(path)
        for name, tensor in adapter.tensors.items():
            moved = (tensor - start.tensors[name]).abs().max()
            if "lora_A" in name:
                # Six steps of AdamW at 2e-3 cannot carry a value further.
                assert moved < 0.02
            else:
                assert moved > 0


def test_the_generator_saw_no_validation_prompt_and_no_test_example(workspace: Workspace) -> None:
    zoo = ZooManifest.read(workspace.path / "zoo")
    seen = GeneratorBundle.load(workspace.experiment).training_tasks.prompt_hashes
    assert set(seen) == {"sums", "capitals"}
    for name, hashes in seen.items():
        task = zoo.task(name)
        given, test = ({prompt_hash(example.prompt) for example in read_examples(zoo.path(part.path))}
                       for part in (task.prompts, task.test))  # fmt: skip
        assert (len(given), len(test)) == (24, 4)
        # A tenth of the prompts is for validation.
        assert len(hashes) == 22
        assert set(hashes) < given
        assert not given & test


def test_the_evaluation_has_every_row(workspace: Workspace) -> None:
    evaluation = json.loads((workspace.path / "results/evaluation.json").read_text(encoding="utf-8"))
    rows = {task["task"]: set(task["scores"]) for task in evaluation["tasks"]}
    common = {"base", "few-shot", "mean", "nearest", "ridge", "generated", "tuned", "tuned from mean"}
    common |= {"tuned from scratch", "wrong prompts", "junk"}
    assert rows == {"sums": common | {"own"}, "capitals": common | {"own"}, "opposites": common}
    assert {task["task"] for task in evaluation["tasks"] if task["held_out"]} == {"opposites"}
    assert any(verdict["against"] == "ridge" for verdict in evaluation["verdicts"])
    for task in evaluation["tasks"]:
        assert task["scores"]["generated"]["num_examples"] == 4
        assert task["scores"]["generated"]["nll"] < task["scores"]["base"]["nll"]
    assert (workspace.path / "results/evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_prompts_of_one_task_give_that_task_s_adapter(workspace: Workspace) -> None:
    generator = LoraGenerator.from_pretrained(workspace.experiment)
    sums = generator.generate(["What is 6 + 7?", "What is 9 + 1?"])
    own = {task: find_adapters(workspace.path / "zoo/adapters" / task)[-1] for task in ("sums", "capitals")}

    def distance(task: str) -> float:
        other = read_adapter(own[task])
        return sum(float((sums.tensors[name] - other.tensors[name]).square().sum()) for name in sums.tensors)

    assert distance("sums") < distance("capitals")


def test_a_bundle_generates_the_same_adapter_as_the_command_wrote(workspace: Workspace) -> None:
    prompts = re.findall(r'--prompt "([^"]+)"', readme_block("quick-start"))
    adapter = LoraGenerator.from_pretrained(workspace.experiment).generate(prompts)
    written = read_adapter(workspace.path / "my-adapter")
    assert all(torch.equal(adapter.tensors[name], written.tensors[name]) for name in written.tensors)
    assert GeneratorBundle.load(workspace.experiment).text_encoder_name == "all-MiniLM-L6-v2"


def test_collect_again_trains_nothing(workspace: Workspace) -> None:
    files = sorted((workspace.path / "zoo/adapters").rglob("*.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    done = workspace.run("loragen-train collect --config config/collect.yaml")
    assert done.returncode == 0
    assert "There already" in done.stderr
    assert [file.stat().st_mtime_ns for file in files] == before


def test_the_demo_and_the_config_folder_use_known_keys_only(workspace: Workspace) -> None:
    # --print_config parses a file and stops before any work.
    commands = {
        "collect": "loragen-train collect",
        "generator": "loragen-train fit",
        "evaluate": "loragen-infer evaluate",
    }
    for preset in ("full", "quick"):
        for name, command in commands.items():
            done = workspace.run(f"{command} --config {ROOT}/demo/{preset}/{name}.yaml --print_config")
            assert done.returncode == 0, done.stderr


PAGES_ON_A_WORKSPACE = [
    "packages/loragen-infer/README.md",
    "packages/loragen-train/README.md",
    "docs/formats/bundle.md",
    "docs/formats/zoo-json.md",
    "docs/how-to/many-adapters.md",
]


@pytest.mark.parametrize("page", PAGES_ON_A_WORKSPACE)
def test_the_code_of_a_page_runs(page: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(workspace.path)
    for block in blocks:
        code = block.replace("experiments/zoo_20260101_120000", str(workspace.experiment))
        exec(compile(code, page, "exec"), {})

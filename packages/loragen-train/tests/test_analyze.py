"""Analyzing a zoo: its numbers, its pictures, and that a broken file is named and stops nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_tokenizer import LoraTokenizerError, read_adapter, write_adapter
from loragen_train import LoragenTrainError
from loragen_train.analysis.analyze import analyze_zoo
from loragen_train.analysis.views import as_text, draw_analysis
from PIL import Image
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, make) -> Path:
    """Three tasks of three checkpoints; those of a task differ little."""
    root = tmp_path_factory.mktemp("analyze")
    make.zoo(root, tasks=("sums", "spelling", "capitals"), num_checkpoints=3)
    return root / "adapters"


@pytest.fixture
def copy(zoo, tmp_path) -> Path:
    return Path(shutil.copytree(zoo, tmp_path / "adapters"))


def test_it_says_what_the_checkpoints_hold(zoo):
    content = analyze_zoo(zoo, token_dim=16, max_tokens=60)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert [task["name"] for task in content["tasks"]] == ["capitals", "spelling", "sums"]
    assert [task["num_checkpoints"] for task in content["tasks"]] == [3, 3, 3]
    (layout,) = content["layouts"]
    # 3 layers of q_proj (A 2x32, B 32x2) and v_proj (A 2x32, B 16x2): 14 tokens of 16 a layer.
    assert (layout["num_modules"], layout["ranks"], layout["num_parameters"]) == (6, [2], 672)
    assert (layout["num_tokens"], layout["grid"], layout["padding"], layout["fits"]) == (42, [3, 14, 16], 0.0, True)
    assert [(kind["name"], kind["number"], kind["r"]) for kind in content["modules"]] == [
        ("q_proj", 3, 2),
        ("v_proj", 3, 2),
    ]
    first = content["checkpoints"][0]
    adapter = read_adapter(first["path"])
    norm = sum(adapter.delta_weight(module).square().sum() for module in adapter.modules).sqrt()
    assert first["norm_delta"] == pytest.approx(float(norm), rel=1e-5)
    assert content["broken"] == {}
    assert content["between_tasks"] > 0.9


def test_the_spread_is_the_standard_deviation_of_the_positions(zoo):
    spread = analyze_zoo(zoo, token_dim=20)["spread"]
    values = torch.stack(
        [torch.cat([tensor.flatten() for tensor in read_adapter(path).tensors.values()]) for path in zoo.glob("*/*")]
    ).double()
    std = values.std(dim=0, correction=0)
    assert spread["num_positions"] == std.numel()
    assert spread["std"]["median"] == pytest.approx(float(std.quantile(0.5)), rel=1e-5)
    assert spread["std"]["max"] == pytest.approx(float(std.max()), rel=1e-5)
    assert spread["rms_of_mean"] == pytest.approx(float(values.mean(dim=0).square().mean().sqrt()), rel=1e-5)
    assert spread["constant"] == 0


def test_cosines_of_checkpoints_and_of_tasks(zoo):
    analysis = analyze_zoo(zoo)
    adapters = [read_adapter(found["path"]) for found in analysis["checkpoints"]]
    deltas = np.stack([np.concatenate([a.delta_weight(m).double().ravel() for m in a.modules]) for a in adapters])
    units = deltas / np.linalg.norm(deltas, axis=1, keepdims=True)
    np.testing.assert_allclose(analysis["cosine"], units @ units.T, atol=1e-6)
    means = deltas.reshape(3, 3, -1).mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(analysis["task_cosine"], means @ means.T, atol=1e-6)
    assert min(task["cosine_within"] for task in analysis["tasks"]) > 0.9


def test_what_does_not_fit_says_what_would(zoo):
    analysis = analyze_zoo(zoo, token_dim=16, max_tokens=41)
    assert not analysis["layouts"][0]["fits"]
    assert "does not fit 41; give --max-tokens 42 or auto" in as_text(analysis)
    assert analyze_zoo(zoo, token_dim=16, max_tokens="auto")["layouts"][0]["fits"]


def test_broken_files_are_named_and_stop_nothing(copy):
    whole = copy / "sums" / "checkpoint-1" / WEIGHTS
    whole.write_bytes(whole.read_bytes()[:-100])
    nan = copy / "sums" / "checkpoint-2" / WEIGHTS
    tensors = load_file(nan)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, nan)
    (copy / "capitals" / "checkpoint-3" / "adapter_config.json").write_text("{")
    (copy / "spelling" / "notes.pt").write_text("not a checkpoint")
    analysis = analyze_zoo(copy)
    assert len(analysis["checkpoints"]) == 6
    broken = {str(Path(path).relative_to(copy)): why for path, why in analysis["broken"].items()}
    assert sorted(broken) == ["capitals/checkpoint-3", "spelling/notes.pt", "sums/checkpoint-1", "sums/checkpoint-2"]
    assert "holds 1 NaN or Inf" in broken["sums/checkpoint-2"]
    text = as_text(analysis)
    assert "Broken: 4" in text
    for path in analysis["broken"]:
        assert path in text


def test_a_zoo_of_broken_files_only_is_an_error(copy, tmp_path):
    for file in copy.rglob(WEIGHTS):
        file.write_bytes(b"")
    with pytest.raises(LoragenTrainError, match=r"^None of the 9 checkpoints in .* can be used; the first: "):
        analyze_zoo(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoraTokenizerError, match="empty holds no adapters"):
        analyze_zoo(tmp_path / "empty")


def test_outliers_and_other_layouts_are_told(copy, make):
    strange = copy / "sums" / "checkpoint-9"
    adapter = make.adapter(seed=0)
    scaled = {name: value * (7 if "lora_B" in name else 1) for name, value in adapter.tensors.items()}
    write_adapter(type(adapter)(config=adapter.config, tensors=scaled), strange)
    write_adapter(make.adapter(seed=1, r=3), copy / "other rank")
    analysis = analyze_zoo(copy)
    (odd,) = (found for found in analysis["checkpoints"] if any("its norm is" in reason for reason in found["outlier"]))
    assert odd["path"] == str(strange)
    assert [layout["num_checkpoints"] for layout in analysis["layouts"]] == [10, 1]
    assert (
        next(found["task"] for found in analysis["checkpoints"] if found["path"].endswith("other rank")) == "adapters"
    )
    assert "cannot be trained on together" in as_text(analysis)


def test_half_precision_beside_single_is_no_other_layout(copy):
    adapter = read_adapter(copy / "sums" / "checkpoint-1")
    write_adapter(adapter.to(torch.float16), copy / "sums" / "half")
    analysis = analyze_zoo(copy)
    assert [layout["num_checkpoints"] for layout in analysis["layouts"]] == [10]
    assert analysis["layouts"][0]["dtypes"] == ["float16", "float32"]
    assert "cannot be trained on together" not in as_text(analysis)


@pytest.mark.parametrize(
    ("where", "tasks"), [("sums", {"sums"}), ("sums/checkpoint-1", {"sums"}), (".", {"sums", "spelling", "capitals"})]
)
def test_a_task_is_the_folder_of_its_checkpoints(zoo, where, tasks):
    analysis = analyze_zoo(zoo / where)
    assert {task["name"] for task in analysis["tasks"]} == tasks
    assert as_text(analysis)


def test_the_pictures_are_drawn_whatever_the_tasks_are_called(copy, tmp_path):
    names = ["$\\frac{", "_hidden\nline", "<script>alert(1)</script>" * 5]
    for old, new in zip(("sums", "spelling", "capitals"), names, strict=True):
        target = copy / new
        target.parent.mkdir(parents=True, exist_ok=True)
        (copy / old).rename(target)
    paths = draw_analysis(analyze_zoo(copy), tmp_path / "plots")
    assert [path.name for path in paths] == ["similarity.png", "projection.png"]
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(image.size) > 400
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_the_command_prints_text_or_json_and_draws(zoo, make, tmp_path, capsys):
    words = ["analyze", "--checkpoint-dir", str(zoo), "--token-dim", "16", "--plot", str(tmp_path / "plots")]
    assert make.cli(*words, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["plots"] == [str(tmp_path / "plots" / name) for name in ("similarity.png", "projection.png")]
    assert all(Path(path).is_file() for path in content["plots"])
    assert len(content["cosine"]) == 9
    assert make.cli(*words) == 0
    assert "9 checkpoints, 3 tasks, 0 broken" in capsys.readouterr().out
    assert make.cli("analyze", "--checkpoint-dir", str(tmp_path / "nowhere")) == 1
    assert capsys.readouterr().err.startswith("loragen-train analyze: error: ")


def test_the_round_trip_of_one_checkpoint(zoo, make, capsys):
    checkpoint = str(zoo / "sums" / "checkpoint-1")
    words = ["test-tokenizer", "--checkpoint", checkpoint, "--token-dim", "16"]
    assert make.cli(*words, "--max-tokens", "42", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert all(found[key] for key in ("fits", "tokens_equal", "files_equal", "layout_equal"))
    assert (found["num_tokens"], found["grid"], found["ranks"]) == (42, [3, 14, 16], [2])
    assert make.cli(*words, "--max-tokens", "auto") == 0
    assert "Equal to the bit" in capsys.readouterr().out


def test_a_checkpoint_that_does_not_fit_exits_1_with_what_would(zoo, make, capsys):
    words = ["test-tokenizer", "--checkpoint", str(zoo / "sums" / "checkpoint-1"), "--token-dim", "16"]
    assert make.cli(*words, "--max-tokens", "41", "--json") == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["ok"], found["fits"], found["num_tokens"]) == (False, False, 42)
    assert "pass max_tokens=42 or 'auto', or leave out the modules v_proj" in err
    assert len(err.strip().splitlines()) == 1
    # What it names does fit.
    assert make.cli(*words, "--max-tokens", str(found["num_tokens"])) == 0


@pytest.mark.parametrize("command", ["analyze --checkpoint-dir", "test-tokenizer --checkpoint"])
@pytest.mark.parametrize("option", ["--max-tokens 0", "--max-tokens none", "--token-dim 0", "--lora-alpha -1"])
def test_an_option_out_of_range_is_a_usage_error(make, capsys, command, option):
    assert make.cli(*command.split(), "x", *option.split()) == 2
    err = capsys.readouterr().err
    assert option.split()[0][2:].replace("-", "_") in err.replace("-", "_")
    assert "restriction" not in err


def test_numbers_of_one_are_in_the_singular_and_zeros_have_no_sign(zoo):
    text = as_text(analyze_zoo(zoo / "sums" / "checkpoint-1"))
    assert ": 1 checkpoint, 1 task, 0 broken" in text
    assert "-0.0" not in text


def test_an_alpha_that_no_file_says_can_be_given(tmp_path, make, capsys):
    file = tmp_path / "task" / "one.safetensors"
    file.parent.mkdir()
    save_file(dict(make.adapter(0).tensors), file)
    for words in (["analyze", "--checkpoint-dir", tmp_path], ["test-tokenizer", "--checkpoint", file]):
        assert make.cli(*map(str, words)) == 1
        assert "alpha" in capsys.readouterr().err
        assert make.cli(*map(str, words), "--lora-alpha", "4") == 0

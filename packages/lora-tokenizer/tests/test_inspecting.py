"""Reports: the numbers are right, for people and for scripts, and the command keeps its exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_tokenizer import (
    LoraTokenizerError,
    TokenLayout,
    check_round_trip,
    inspect_adapter,
    inspecting,
    read_adapter,
    write_adapter,
)
from lora_tokenizer.__main__ import main
from safetensors.torch import save_file


def test_norms_are_those_of_the_matrices(peft_folder: Path) -> None:
    adapter, report = read_adapter(peft_folder), inspect_adapter(peft_folder, token_dim=8)
    assert [m.module for m in report.modules] == list(adapter.modules)
    for m in report.modules:
        a, b = adapter.factors(m.module)
        assert (m.norm_a, m.norm_b) == (pytest.approx(a.norm().item()), pytest.approx(b.norm().item()))
        assert m.norm_delta == pytest.approx(adapter.delta_weight(m.module).norm().item(), rel=1e-5)
    layout = TokenLayout.from_adapter(adapter, token_dim=8)
    assert (report.grid, report.fingerprint) == (layout.grid, layout.fingerprint)


def test_the_command_prints_a_table_and_json(peft_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(peft_folder)]) == 0
    table = capsys.readouterr().out
    assert "model.layers.0.self_attn.q_proj" in table
    assert "padding" in table
    assert main(["inspect", str(peft_folder), "--json", "--token-dim", "8"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["num_tokens"] == inspect_adapter(peft_folder, token_dim=8).num_tokens


def test_nan_is_counted(tmp_path: Path, make_adapter: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = dict(make_adapter().tensors)
    next(iter(tensors.values()))[0, :2] = torch.tensor([float("nan"), float("inf")])
    save_file(tensors, tmp_path / "x.safetensors")
    arguments = ["inspect", str(tmp_path / "x.safetensors"), "--lora-alpha", "8", "--json"]
    assert main(arguments) == 1
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert content["num_nonfinite"] == content["modules"][0]["num_nonfinite"] == 2


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit) as caught:
        main(["inspect"])
    assert caught.value.code == 2


def test_help_does_not_wait_for_torch() -> None:
    code = "import atexit, sys, lora_tokenizer.__main__ as m; atexit.register(lambda: print('torch' in sys.modules)); "
    code += "m.main(['--help'])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.endswith("False\n")


def test_the_round_trip(peft_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    assert check_round_trip(peft_folder, token_dim=8).ok
    assert main(["round-trip", str(peft_folder)]) == 0
    assert capsys.readouterr().out.endswith("the same to the bit\n")
    assert main(["round-trip", str(peft_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens_equal"] is True
    with monkeypatch.context() as patch:
        patch.setattr(inspecting, "same_bits", lambda *_: False)
        assert main(["round-trip", str(peft_folder)]) == 1
    assert capsys.readouterr().out.endswith("NOT the same after the round trip: tokens, files\n")
    with pytest.raises(LoraTokenizerError, match="max_tokens"):
        check_round_trip(peft_folder, token_dim=8, max_tokens=2)


def test_the_readme_and_the_page_that_includes_it_run(
    tmp_path: Path, peft_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    peft_folder.rename(tmp_path / "my-adapter")
    write_adapter(read_adapter("my-adapter"), tmp_path / "zoo/adapters/task/checkpoint-9")
    torch.save({"state_dict": dict(read_adapter("my-adapter").tensors)}, tmp_path / "last.ckpt")
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    page = (Path(__file__).parents[3] / "docs/how-to/tokens.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme + page, re.DOTALL)
    assert len(blocks) >= 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    for command in re.findall(r"^python -m lora_tokenizer (.*)$", readme, re.MULTILINE):
        assert main(command.split()) == 0

"""Which adapters a folder holds, and which one a path stands for."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from lora_tokenizer import LoraTokenizerError, find_adapter, find_adapters
from safetensors.torch import save_file


def test_finding_adapters_in_natural_order(tmp_path: Path, peft_folder: Path, make_adapter: Any) -> None:
    root = tmp_path / "runs"
    for name in ("checkpoint-10", "checkpoint-9", "b/checkpoint-2"):
        shutil.copytree(peft_folder, root / name)
    (root / "checkpoint-9" / "optimizer.pt").write_bytes(b"")
    (root / "c").mkdir()
    save_file(dict(make_adapter().tensors), root / "c" / "step=100.safetensors")
    (root / "c" / "step=20.ckpt").write_bytes(b"")
    (root / "c" / "readme.txt").write_bytes(b"")
    found = [str(path.relative_to(root)) for path in find_adapters(root)]
    assert found == ["b/checkpoint-2", "c/step=20.ckpt", "c/step=100.safetensors", "checkpoint-9", "checkpoint-10"]
    assert find_adapters(peft_folder) == [peft_folder]
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoraTokenizerError, match="no adapters"):
        find_adapters(tmp_path / "empty")
    with pytest.raises(LoraTokenizerError, match="does not exist"):
        find_adapters(tmp_path / "nowhere")


def test_a_folder_stands_for_its_own_adapter_or_else_for_its_last_checkpoint(tmp_path: Path, peft_folder: Path) -> None:
    out = tmp_path / "out"
    for name in ("checkpoint-5", "checkpoint-10"):
        shutil.copytree(peft_folder, out / name)
    assert find_adapter(out) == out / "checkpoint-10"
    config = (peft_folder / "adapter_config.json").read_bytes()
    (out / "adapter_config.json").write_bytes(config)
    assert find_adapter(out) == out / "checkpoint-10", "settings without weights are no adapter"
    shutil.copy(peft_folder / "adapter_model.safetensors", out)
    assert find_adapter(out) == find_adapter(f"{out}/") == out
    assert find_adapters(out) == [out / "checkpoint-5", out / "checkpoint-10", out], "what it ended with is the last"
    assert find_adapters(tmp_path)[-1] == out
    file = out / "adapter_model.safetensors"
    assert find_adapter(file) == file
    with pytest.raises(LoraTokenizerError, match="does not exist"):
        find_adapter(tmp_path / "nowhere")

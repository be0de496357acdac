"""Checkpoints of every kind: the same adapter comes out of all of them; what is unclear is an error that says so."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import raw_state
from lora_tokenizer import (
    AdapterConfig,
    LoraAdapter,
    LoraTokenizerError,
    find_adapters,
    read_adapter,
    same_bits,
    write_adapter,
)
from lora_tokenizer.__main__ import main
from peft import PeftModel
from safetensors.torch import save_file


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("before", ["", "model.", "_forward_module.module.model."])
@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth", ".ckpt"])
def test_any_prefix_in_any_file(
    ending: str, before: str, dtype: torch.dtype, tmp_path: Path, make_adapter: Any
) -> None:
    adapter = make_adapter(dtype=dtype)
    state = raw_state(adapter, before)
    path = tmp_path / f"x{ending}"
    if ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state if ending != ".ckpt" else {"state_dict": state, "epoch": 1}, path)
    read = read_adapter(path, lora_alpha=8)
    assert same_bits(read, adapter)
    assert (read.config.r, read.config.lora_alpha) == (4, 8)
    assert read.config.target_modules == tuple(sorted(adapter.modules))


def test_parameters_views_and_shared_storages(tmp_path: Path, make_adapter: Any) -> None:
    adapter = make_adapter()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in adapter.tensors.items():
        turned = tensor.T.contiguous().T  # column-major
        state[name] = torch.nn.Parameter(turned) if "lora_A" in name else torch.cat([tensor, tensor])[len(tensor) :]
    torch.save(state, tmp_path / "x.pt")
    assert same_bits(read_adapter(tmp_path / "x.pt", lora_alpha=8), adapter)


def test_several_adapters_need_a_name(tmp_path: Path, make_adapter: Any) -> None:
    first, second = make_adapter(), make_adapter()
    torch.save(raw_state(first, adapter_name="one") | raw_state(second, adapter_name="two"), tmp_path / "x.pt")
    with pytest.raises(LoraTokenizerError, match=r"2 adapters \(one, two\): pick one with adapter_name="):
        read_adapter(tmp_path / "x.pt", lora_alpha=8)
    assert same_bits(read_adapter(tmp_path / "x.pt", lora_alpha=8, adapter_name="two"), second)


def test_a_given_prefix_is_cut_off(tmp_path: Path, make_adapter: Any) -> None:
    adapter = make_adapter()
    state = {name.replace("base_model.model.", "net."): tensor for name, tensor in adapter.tensors.items()}
    torch.save(state, tmp_path / "x.pt")
    assert same_bits(read_adapter(tmp_path / "x.pt", lora_alpha=8, prefix="net."), adapter)
    assert read_adapter(tmp_path / "x.pt", lora_alpha=8).modules[0].startswith("net.model.")


def test_two_names_for_one_tensor_are_refused(tmp_path: Path, make_adapter: Any) -> None:
    adapter = make_adapter()
    torch.save(dict(adapter.tensors) | {f"ema.{n}": t for n, t in adapter.tensors.items()}, tmp_path / "x.pt")
    with pytest.raises(LoraTokenizerError, match="once prefixes are off"):
        read_adapter(tmp_path / "x.pt", lora_alpha=8)


def test_bin_needs_the_opt_in(tmp_path: Path, peft_folder: Path, tiny_llama: Any) -> None:
    adapter, folder = read_adapter(peft_folder), tmp_path / "bin"
    PeftModel.from_pretrained(tiny_llama(), str(peft_folder)).save_pretrained(str(folder), safe_serialization=False)
    for path in (folder, folder / "adapter_model.bin"):
        with pytest.raises(LoraTokenizerError, match=r"adapter_model\.bin is a pickle file: .* allow_bin=True"):
            read_adapter(path)
        assert same_bits(read_adapter(path, allow_bin=True), adapter)
    assert main(["inspect", str(folder)]) == 1
    assert main(["inspect", str(folder), "--allow-bin"]) == 0


def test_no_code_of_a_pickle_runs(tmp_path: Path, make_adapter: Any) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    state = dict(make_adapter().tensors)
    torch.save(
        {"state_dict": state, "evil": Evil(), "hyper_parameters": {"lora_alpha": 8, "x": Evil()}}, tmp_path / "x.pt"
    )
    read_adapter(tmp_path / "x.pt")
    torch.save(state | {"base_model.model.evil.lora_A.weight": Evil()}, tmp_path / "y.pt")
    with pytest.raises(LoraTokenizerError, match="not a plain dense tensor"):
        read_adapter(tmp_path / "y.pt", lora_alpha=8)
    assert not (tmp_path / "ran").exists()


def test_a_compressed_zip_is_refused(tmp_path: Path, make_adapter: Any) -> None:
    torch.save(dict(make_adapter().tensors), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as source, zipfile.ZipFile(tmp_path / "y.pt", "w", 8) as target:
        for item in source.namelist():
            target.writestr(item, source.read(item), zipfile.ZIP_DEFLATED)
    with pytest.raises(LoraTokenizerError, match="compressed or encrypted"):
        read_adapter(tmp_path / "y.pt", lora_alpha=8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_nan_and_inf_are_named(value: float, dtype: torch.dtype, tmp_path: Path, make_adapter: Any) -> None:
    adapter = make_adapter(dtype=dtype)
    name = list(adapter.tensors)[2]
    adapter.tensors[name][1, 0] = value
    save_file(dict(adapter.tensors), tmp_path / "x.safetensors")
    with pytest.raises(LoraTokenizerError, match=f"x.safetensors: tensor '{name}' holds 1 NaN or Inf"):
        read_adapter(tmp_path / "x.safetensors", lora_alpha=8)
    assert same_bits(read_adapter(tmp_path / "x.safetensors", lora_alpha=8, check_values=False), adapter)
    with pytest.raises(LoraTokenizerError, match="NaN or Inf"):
        write_adapter(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_large_finite_values_are_not_taken_for_inf(tmp_path: Path, make_adapter: Any) -> None:
    adapter = make_adapter(dtype=torch.float16)
    for tensor in adapter.tensors.values():
        tensor.fill_(65504)
    huge = make_adapter()
    for tensor in huge.tensors.values():
        tensor.fill_(3e38)
    for index, each in enumerate([adapter, huge]):
        assert same_bits(read_adapter(write_adapter(each, tmp_path / str(index))), each)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"), "has no lora_B.weight"),
        (lambda t: t.update({"base_model.model.x.lora_A.weight": torch.zeros(0, 4)}), "lora_A.weight"),
        (lambda t: t.update({"base_model.model.../x.lora_A.weight": torch.zeros(4, 4)}), "not a dotted module name"),
        (lambda t: t.update({"base_model.model.x.lora_E": torch.zeros(4, 4)}), "lora_E"),
        (lambda t: t.update({"base_model.model.x.lora_A.weight": torch.zeros(4, 4, 3, 3)}), "convolutions"),
        (lambda t: t.update({"base_model.model.x.lora_A.weight": torch.zeros(4, 4, dtype=torch.int8)}), "I8"),
        (lambda t: t.update({"lm_head.modules_to_save.default.weight": torch.zeros(4, 4)}), "modules_to_save"),
        (lambda t: t.update({"base_model.model.x.lora_magnitude_vector": torch.zeros(4)}), "lora_magnitude_vector"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_said(change: Any, message: str, tmp_path: Path, make_adapter: Any) -> None:
    tensors = dict(make_adapter().tensors)
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(LoraTokenizerError, match=message) as caught:
        read_adapter(tmp_path / "x.safetensors", lora_alpha=8)
    assert "x.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rank_that_is_not_that_of_the_config(peft_folder: Path) -> None:
    with pytest.raises(LoraTokenizerError, match="do not fit the rank r=16"):
        read_adapter(peft_folder, r=16)


def test_an_alpha_that_is_given_counts_beside_a_whole_config_too(peft_folder: Path) -> None:
    config = read_adapter(peft_folder).config
    assert read_adapter(peft_folder, config=config, lora_alpha=3).config == replace(config, lora_alpha=3)


def test_a_slow_pattern_is_refused_and_not_run(peft_folder: Path) -> None:
    config = json.loads((peft_folder / "adapter_config.json").read_text())
    config["alpha_pattern"] = {"(a+)+b": 3}
    (peft_folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(LoraTokenizerError, match="repeats too much"):
        read_adapter(peft_folder)


def test_writing_replaces_adapters_only(tmp_path: Path, make_adapter: Any) -> None:
    first, second = make_adapter(), make_adapter()
    folder = write_adapter(first, tmp_path / "a")
    with pytest.raises(LoraTokenizerError, match="overwrite=True"):
        write_adapter(second, folder)
    assert same_bits(read_adapter(write_adapter(second, folder, overwrite=True)), second)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(LoraTokenizerError, match="something else than an adapter"):
        write_adapter(first, tmp_path / "mine", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "mine"]


def test_writing_through_a_link_keeps_the_link(tmp_path: Path, make_adapter: Any) -> None:
    first, second = make_adapter(), make_adapter()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_adapter(first, tmp_path / "link")
    write_adapter(second, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert same_bits(read_adapter(tmp_path / "real"), second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    values = torch.randn(12)
    name = "base_model.model.q.lora_{}.weight"
    tensors = {name.format("A"): values[:8].view(2, 4), name.format("B"): values[4:].view(4, 2)}
    adapter = LoraAdapter(config=AdapterConfig(r=2, lora_alpha=4, target_modules=("q",)), tensors=tensors)
    assert same_bits(read_adapter(write_adapter(adapter, tmp_path / "a")), adapter)


@pytest.mark.parametrize(
    "path", ["x" * 5000, "a/" * 3000, "a\0b", "/etc/passwd/x"], ids=["long", "deep", "null", "file"]
)
def test_paths_that_the_system_refuses_are_one_sentence(path: str, tmp_path: Path, make_adapter: Any) -> None:
    for read in (find_adapters, read_adapter):
        with pytest.raises(LoraTokenizerError, match=r"cannot read|does not exist"):
            read(path)
    with pytest.raises(LoraTokenizerError, match="cannot write"):
        write_adapter(make_adapter(), tmp_path / path.replace("/etc/passwd", str(tmp_path / "a") + "\0"))


@pytest.mark.skipif(os.getuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(LoraTokenizerError, match="closed: Permission denied"):
        find_adapters(tmp_path)


def test_a_bin_folder_refuses_saved_embeddings_as_others_do(tmp_path: Path, make_adapter: Any) -> None:
    adapter = make_adapter()
    folder = write_adapter(adapter, tmp_path / "a")
    tensors = dict(adapter.tensors) | {"base_model.model.model.embed_tokens.weight": torch.ones(4, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    bin_folder = write_adapter(adapter, tmp_path / "b")
    (bin_folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, bin_folder / "adapter_model.bin")
    for path in (folder, bin_folder, bin_folder / "adapter_model.bin"):
        with pytest.raises(LoraTokenizerError, match=r"embed_tokens\.weight' is not a LoRA tensor"):
            read_adapter(path, allow_bin=True)


def test_a_checkpoint_larger_than_the_memory_is_read(tmp_path: Path, make_adapter: Any) -> None:
    """All but the LoRA is a hole in the file, which takes no room on the disk."""
    adapter = make_adapter()
    num_bytes = 4 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8 * 8
    header: dict[str, Any] = {"base": {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes]}}
    at = num_bytes
    for name, tensor in adapter.tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    with (tmp_path / "x.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.seek(num_bytes, os.SEEK_CUR)
        for tensor in adapter.tensors.values():
            stream.write(tensor.numpy().tobytes())
    assert same_bits(read_adapter(tmp_path / "x.safetensors", lora_alpha=8), adapter)

    torch.save(dict(adapter.tensors), tmp_path / "small.pt")
    with zipfile.ZipFile(tmp_path / "small.pt") as source, (tmp_path / "x.pt").open("wb") as stream:
        stream.seek(num_bytes)  # what stands before a zip does not count
        with zipfile.ZipFile(stream, "a") as target:
            for item in source.namelist():
                target.writestr(item, source.read(item))
    assert same_bits(read_adapter(tmp_path / "x.pt", lora_alpha=8), adapter)

"""Loading the language model: what comes back, and what is said of a folder that is none."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from loragen_infer import LoragenInferError
from loragen_infer.models.base_model import load_base_model, save_base_model
from transformers import AutoModelForCausalLM, PreTrainedModel


def test_comes_back_in_float32_and_eval_mode_with_the_same_weights(zoo):
    model, tokenizer = load_base_model(str(zoo.model))
    expected = AutoModelForCausalLM.from_pretrained(zoo.model).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    assert tokenizer.pad_token == "<pad>"


def test_a_model_comes_in_its_own_dtype_or_in_the_one_asked_for(zoo, make, tmp_path):
    AutoModelForCausalLM.from_pretrained(zoo.model, dtype=torch.bfloat16).save_pretrained(tmp_path)
    make.tokenizer().save_pretrained(tmp_path)
    wanted = {None: torch.bfloat16, "float32": torch.float32, torch.float16: torch.float16}
    for dtype, expected in wanted.items():
        model, _ = load_base_model(str(tmp_path), dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {expected}
    with pytest.raises(LoragenInferError, match="The dtype 'int8' is unknown; use one of float32"):
        load_base_model(str(tmp_path), dtype="int8")


def test_threads_that_load_at_once_leave_transformers_as_it_was(zoo):
    before = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load_base_model, [str(zoo.model)] * 12))
    assert PreTrainedModel.tie_weights is before


def test_a_device_map_places_the_model(zoo):
    model, _ = load_base_model(str(zoo.model), device_map={"": "cpu"})
    assert model.device.type == "cpu"
    with pytest.raises(LoragenInferError, match=r"cannot be loaded: .*nonsense"):
        load_base_model(str(zoo.model), device_map="nonsense")


def test_a_tokenizer_without_padding_pads_with_its_end_token(llama, make, tmp_path):
    llama.save_pretrained(tmp_path)
    make.tokenizer(pad=False).save_pretrained(tmp_path)
    _, tokenizer = load_base_model(str(tmp_path))
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"


def test_saving_writes_a_folder_that_loads_and_leaves_one_that_exists(zoo, tmp_path):
    folder = save_base_model(str(zoo.model), tmp_path / "copy")
    first, _ = load_base_model(str(folder))
    second, _ = load_base_model(str(zoo.model))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    (folder / "mark").write_text("x")
    assert save_base_model(str(zoo.model), folder) == folder
    assert (folder / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def truncate_weights(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def break_config(folder):
    (folder / "config.json").write_text("{")


def change_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def break_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


DAMAGE = {
    "truncated weights": truncate_weights,
    "no weights": remove_weights,
    "broken config": break_config,
    "weights of another size": change_config(hidden_size=64),
    "an unknown kind of model": change_config(model_type="nonsense"),
    "no language model": change_config(model_type="clip"),
    "broken tokenizer": break_tokenizer,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_named_in_one_line(zoo, tmp_path, damage):
    folder = shutil.copytree(zoo.model, tmp_path / "damaged")
    DAMAGE[damage](folder)
    with pytest.raises(LoragenInferError, match=r"The base model '.*damaged' \(.*\) cannot be loaded: \S") as caught:
        load_base_model(str(folder))
    assert "\n" not in str(caught.value)


def test_a_gguf_file_that_is_none_is_named(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not GGUF")
    with pytest.raises(LoragenInferError, match=r"The base model '.*x\.gguf' .* cannot be loaded: "):
        load_base_model(str(tmp_path / "x.gguf"))


def test_memory_that_runs_out_is_said_in_plain_words(zoo, monkeypatch):
    def full(*_arguments, **_options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(LoragenInferError, match="cannot be loaded: there is not enough memory for it"):
        load_base_model(str(zoo.model))


def test_a_device_that_is_not_there_is_named(zoo):
    with pytest.raises(LoragenInferError, match="The device 'gpu' cannot be used"):
        load_base_model(str(zoo.model), device="gpu")

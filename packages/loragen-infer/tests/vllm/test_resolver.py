"""The plugin, asked as vLLM's OpenAI server asks it; vLLM itself is not here, only its signatures are."""

import asyncio
import io
import json
import logging
import sys
import threading
import tomllib
from abc import abstractmethod
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_tokenizer import read_adapter
from loragen_infer import LoraGenerator, LoragenInferError
from loragen_infer.bundle import GeneratorBundle
from loragen_infer.store import AdapterStore
from loragen_infer.vllm import adapter_id_of, request_id_of, served_name
from loragen_infer.vllm.plugin import register

PROMPTS = ["What is 17 + 25?", "What is 3 + 88?"]


def ask(registry, base_model, name):
    """Ask each resolver in turn, as vLLM does with the ``model`` of a request that it does not know."""

    async def in_turn():
        for resolver_name in registry.get_supported_resolvers():
            found = await registry.get_resolver(resolver_name).resolve_lora(base_model, name)
            if found is not None:
                return found
        return None

    return asyncio.run(in_turn())


@pytest.fixture
def store(tmp_path, generator):
    return AdapterStore(tmp_path / "store", generator)


@pytest.fixture
def plugin(vllm, store, zoo, tmp_path, monkeypatch):
    """The registry of vLLM after its start, with a store and a model in the environment."""
    monkeypatch.setenv("LORAGEN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LORAGEN_MODEL", str(zoo.experiment))
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    register()
    return vllm


@pytest.fixture
def vllm_log():
    """What is printed where logging is set up as vLLM does it: for its own logger only."""
    stream, root, own = io.StringIO(), logging.getLogger(), logging.getLogger("vllm")
    before, handler = (root.level, own.level, own.propagate), logging.StreamHandler(stream)
    own.addHandler(handler)
    root.setLevel(logging.WARNING)
    own.setLevel(logging.INFO)
    own.propagate = False
    yield stream
    own.removeHandler(handler)
    root.setLevel(before[0])
    own.setLevel(before[1])
    own.propagate = before[2]


def test_the_entry_point_is_where_vllm_looks(vllm, monkeypatch):
    content = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    [(name, value)] = content["project"]["entry-points"]["vllm.general_plugins"].items()
    monkeypatch.delenv("LORAGEN_STORE", raising=False)
    EntryPoint(name, value, "vllm.general_plugins").load()()
    assert vllm.resolvers == {}  # without a store vLLM is left alone
    assert content["project"]["optional-dependencies"]["vllm"] == []


def test_a_finished_adapter_is_found(plugin, store, zoo):
    made = store.get_or_create(PROMPTS)
    found = ask(plugin, str(zoo.model), served_name(made.id))
    assert found.lora_name == f"loragen:{made.id}"
    assert Path(found.lora_path) == made.path.absolute()
    assert found.lora_int_id == int(made.id, 16) % 2**63
    assert len(read_adapter(found.lora_path).modules) == 4


def test_registered_prompts_become_an_adapter_at_the_first_request(plugin, store, zoo):
    adapter_id = store.register(PROMPTS)
    assert store.find(adapter_id) is None
    found = ask(plugin, str(zoo.model), served_name(adapter_id))
    assert Path(found.lora_path) == store.find(adapter_id).path.absolute()


def test_what_is_no_adapter_of_the_store_is_none(plugin, zoo, tmp_path):
    (tmp_path / "store").mkdir(exist_ok=True)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    for name in ("gpt", "loragen:", "loragen:..", "loragen:../adapter", f"loragen:{'0' * 16}", f"loragen:{'F' * 16}"):
        assert ask(plugin, str(zoo.model), name) is None


def test_an_id_that_nobody_registered_loads_no_generator(plugin, zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(LoraGenerator, "from_pretrained", lambda *_, **__: pytest.fail("a generator is loaded"))
    assert ask(plugin, str(zoo.model), f"loragen:{'0' * 16}") is None


@given(st.text() | st.from_regex(r"loragen:[0-9a-f]{0,17}", fullmatch=True))
def test_only_sixteen_digits_are_an_id(name):
    adapter_id = adapter_id_of(name)
    if adapter_id is not None:
        assert served_name(adapter_id) == name
        assert len(adapter_id) == 16
        assert 0 < request_id_of(adapter_id) < 2**63


def test_the_number_is_the_same_in_every_process():
    assert request_id_of("1234567890abcdef") == 0x1234567890ABCDEF
    assert request_id_of("f" * 16) == 2**63 - 1
    assert request_id_of("0" * 16) == request_id_of("8" + "0" * 15) == 1


def test_an_adapter_of_another_base_model_is_none_and_the_log_says_so(plugin, store, zoo, caplog):
    made = store.get_or_create(PROMPTS)
    assert ask(plugin, "Qwen/Qwen3-0.6B", served_name(made.id)) is None
    assert f"is an adapter of {zoo.model}, but vLLM serves Qwen/Qwen3-0.6B" in caplog.text
    config = made.path / "adapter_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = "Qwen/Qwen3-0.6B"
    config.write_text(json.dumps(content), encoding="utf-8")
    # What vLLM serves is called so where HF_HUB_OFFLINE is set.
    snapshot = "/cache/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a0"
    assert ask(plugin, snapshot, served_name(made.id)) is not None


def test_without_a_model_only_finished_adapters_are_served(vllm, store, zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAGEN_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("LORAGEN_MODEL", raising=False)
    register()
    made, later = store.get_or_create(PROMPTS), store.register(["Spell cat backwards."])
    assert ask(vllm, str(zoo.model), served_name(made.id)) is not None
    assert ask(vllm, str(zoo.model), served_name(later)) is None


def test_the_event_loop_goes_on_while_an_adapter_is_made(plugin, store, zoo, monkeypatch):
    ids = [store.register([text]) for text in ("one", "two", "three")]
    loading, loaded, load = threading.Event(), [], LoraGenerator.from_pretrained

    def slow(*arguments, **options):
        loaded.append(arguments)
        assert loading.wait(timeout=10)
        return load(*arguments, **options)

    monkeypatch.setattr(LoraGenerator, "from_pretrained", slow)
    resolver = plugin.get_resolver("loragen")

    async def serve():
        tasks = [asyncio.create_task(resolver.resolve_lora(str(zoo.model), served_name(one))) for one in ids]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in tasks)
        loading.set()  # which a loop that was held up could not do
        return await asyncio.gather(*tasks)

    assert [found.lora_name for found in asyncio.run(serve())] == [served_name(one) for one in ids]
    assert len(loaded) == 1  # requests at once load one generator


def test_what_cannot_be_made_is_an_error_and_no_missing_model(plugin, store, zoo, monkeypatch):
    adapter_id = store.register(PROMPTS)

    def full(*_, **__):
        raise LoragenInferError("The disk is full.")

    monkeypatch.setattr(LoraGenerator, "from_pretrained", full)
    with pytest.raises(LoragenInferError, match="disk is full"):
        ask(plugin, str(zoo.model), served_name(adapter_id))


def test_what_vllm_would_refuse_is_said_at_its_start(vllm, zoo, make, llama, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LORAGEN_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", raising=False)
    bundle = make.bundle([make.adapter(llama, tmp_path / "dora", use_dora=True)])
    bundle.save(tmp_path / "dora.safetensors")
    monkeypatch.setenv("LORAGEN_MODEL", str(tmp_path / "dora.safetensors"))
    with caplog.at_level(logging.INFO):
        register()
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in caplog.text
    assert "vLLM would not load the adapters of" in caplog.text
    assert "DoRA" in caplog.text
    caplog.clear()
    monkeypatch.setenv("LORAGEN_MODEL", str(zoo.experiment))
    with caplog.at_level(logging.INFO):
        register()
    assert "--max-lora-rank 8 or more" in caplog.text
    caplog.clear()
    monkeypatch.setenv("LORAGEN_MODEL", str(tmp_path / "nothing"))
    register()  # as on a machine of vLLM's that only computes
    assert "LORAGEN_MODEL: " in caplog.text
    assert "nothing" in caplog.text
    assert list(vllm.resolvers) == ["loragen"]


def test_what_the_adapters_need_is_in_the_log_of_vllm(vllm_log, plugin, zoo):
    assert f"vLLM takes the adapters of {zoo.experiment} with --max-lora-rank 8 or more." in vllm_log.getvalue()


def test_a_vllm_that_the_plugin_does_not_fit_starts_without_it(vllm_log, vllm, zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAGEN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LORAGEN_MODEL", str(zoo.experiment))

    class Newer(sys.modules["vllm.lora.resolver"].LoRAResolver):
        @abstractmethod
        async def forget_lora(self, lora_name: str) -> None: ...

    monkeypatch.setattr(sys.modules["vllm.lora.resolver"], "LoRAResolver", Newer)
    register()
    monkeypatch.setitem(sys.modules, "vllm.lora.resolver", None)  # as in one that has no resolvers
    register()
    assert vllm.resolvers == {}
    said = vllm_log.getvalue()
    assert said.count("The plugin loragen is not registered, and vLLM goes on without it; ") == 2
    assert "forget_lora" in said
    assert "ModuleNotFoundError" in said


def test_a_bundle_that_breaks_the_look_at_it_keeps_no_vllm_from_starting(vllm_log, vllm, zoo, tmp_path, monkeypatch):
    def broken(_model):
        raise RuntimeError("of a kind that nobody foresaw")

    monkeypatch.setenv("LORAGEN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LORAGEN_MODEL", str(zoo.experiment))
    monkeypatch.setattr(GeneratorBundle, "load", broken)
    register()
    assert list(vllm.resolvers) == ["loragen"]
    assert f"for the adapters of {zoo.experiment} is not known; check the bundle." in vllm_log.getvalue()
    assert "of a kind that nobody foresaw" in vllm_log.getvalue()

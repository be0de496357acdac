"""Small real parts for the tests: tiny Llamas, char-level tokenizers, PEFT adapters, bundles, one real encoder."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hyperconv import GeneratorConfig, HyperConvGenerator
from lora_tokenizer import TokenLayout, TokenStats, read_adapter
from loragen_infer import GeneratorBundle, LoraGenerator, PromptEncoder
from loragen_infer.bundle.sealed_file import write_sealed
from loragen_infer.zoo import SampleFile, ZooManifest, ZooTask
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
transformers_logging.disable_progress_bar()

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
SPECIALS = ["<unk>", "</s>", "<pad>"]
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_tokenizer(*, template: bool = False, eos: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of which every character is one token, so that tests can count tokens by eye."""
    vocabulary = {token: index for index, token in enumerate(SPECIALS + CHARACTERS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="</s>" if eos else None,
        pad_token="<pad>" if pad else None,
        chat_template=TEMPLATE if template else None,
    )


def make_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIALS) + len(CHARACTERS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        # Large enough that the next token depends on the text, which a freshly made model hardly shows.
        initializer_range=0.2,
        eos_token_id=1,
        pad_token_id=2,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def save_adapter(model: LlamaForCausalLM, folder: Path, *, seed: int = 0, **options: object) -> Path:
    """Save a PEFT adapter with random A and B on a copy of ``model`` and return its folder."""
    torch.manual_seed(seed)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
    wrapped = get_peft_model(copy, LoraConfig(**settings))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.peft_config["default"].base_model_name_or_path = options.get("base", model.name_or_path)
    wrapped.save_pretrained(folder)
    return folder


def make_bundle(adapter_folders: list[Path], *, seed: int = 0, **options: object) -> GeneratorBundle:
    """A bundle over the given adapters, with a generator whose output depends on the prompts."""
    adapters = [read_adapter(folder) for folder in adapter_folders]
    layout = TokenLayout.from_adapter(adapters[0], token_dim=32)
    num_layers, row_tokens, width = layout.grid
    torch.manual_seed(seed)
    generator = HyperConvGenerator(
        GeneratorConfig(
            **{
                "condition_dim": 384,
                "hidden_dim": 16,
                "grid": (num_layers, row_tokens),
                "output_dim": width,
                "num_hyperconv_blocks": 1,
                "kernel_size": 1,
                "num_basis": 4,
                "output_scale": 1.0,
                **options,
            }
        )
    )
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    stats = TokenStats.from_tokens(layout.encode(adapter) for adapter in adapters)
    return GeneratorBundle(generator=generator.eval(), layout=layout, stats=stats, text_encoder_name="all-MiniLM-L6-v2")


def write_old_bundle(
    path: Path, bundle: GeneratorBundle, *, names: tuple[str, ...] = (), means: dict | None = None, **metadata: str
) -> Path:
    """The bundle as version 0.1.0 wrote it first: no encoder fingerprint, and means of the training tasks in it."""
    tensors = {f"generator.{name}": value for name, value in bundle.generator.state_dict().items()}
    tensors |= {f"stats.{name}": value for name, value in bundle.stats.to_tensors().items()}
    tensors |= {f"text_encoder.{name}": value for name, value in (bundle.text_encoder_state or {}).items()}
    tensors |= {f"tasks.{name}": value for name, value in (means or {}).items()}
    content = {
        "format": "loragen-bundle",
        "format_version": "1" if bundle.text_encoder_state is None else "2",
        "generator_config": json.dumps({**bundle.generator.config.to_dict(), "centering": "running"}),
        "layout": bundle.layout.to_json(),
        "text_encoder_name": bundle.text_encoder_name,
        "versions": json.dumps({"loragen-infer": "0.1.0"}),
        **({"task_names": json.dumps(list(names))} if means else {}),
        **metadata,
    }
    write_sealed(path, tensors, content)
    return path


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_manifest(root: Path, *, adapters: list[Path], model: Path, **changes: dict) -> ZooManifest:
    """A ``zoo.json`` in ``root``: two training tasks with an adapter each and one held out; ``changes`` by task."""
    root.mkdir(exist_ok=True)
    tasks = []
    for place, name in enumerate(("one", "two", "new")):
        files = {
            part: SampleFile.of(
                write_rows(
                    root / f"{name}.{part}.jsonl",
                    [{"prompt": f"{part} {number} of {name}", "response": word} for number, word in enumerate(words)],
                ),
                root,
            )
            for part, words in (("prompts", ["ab", "cd", "ef", "gh", "ij"]), ("test", ["kl", "mn"]))
        }
        own = {"held_out": True} if name == "new" else {"adapters": [str(adapters[place])]}
        tasks.append(ZooTask(**{"name": name, **files, **own, **changes.get(name, {})}))
    manifest = ZooManifest(base_model=str(model), base_model_path=str(model), tasks=tasks, folder=root.absolute())
    manifest.write()
    return manifest


@pytest.fixture(autouse=True)
def quiet_logging():
    """What a command line changes in the process's logging ends with the test."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The builders above, since tests cannot import a conftest."""
    return SimpleNamespace(
        tokenizer=make_tokenizer,
        llama=make_llama,
        adapter=save_adapter,
        bundle=make_bundle,
        manifest=make_manifest,
        old_bundle=write_old_bundle,
        rows=write_rows,
    )


@pytest.fixture(scope="session")
def llama() -> LlamaForCausalLM:
    """A tiny model that tests must leave as it is."""
    return make_llama()


@pytest.fixture(scope="session")
def encoder() -> PromptEncoder:
    return PromptEncoder("all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """On disk: a tiny language model, two adapters of it, and a bundle; ``bundle`` and ``generator`` in memory."""
    root = tmp_path_factory.mktemp("zoo")
    model = make_llama(seed=1)
    model.save_pretrained(root / "model")
    make_tokenizer(template=True).save_pretrained(root / "model")
    model = LlamaForCausalLM.from_pretrained(root / "model")
    folders = [save_adapter(model, root / f"adapter{seed}", seed=seed) for seed in (1, 2)]
    bundle = make_bundle(folders)
    bundle.save(root / "experiment" / "results" / "final_model" / "generator.safetensors")
    return SimpleNamespace(
        root=root,
        model=root / "model",
        adapters=folders,
        experiment=root / "experiment",
        file=root / "experiment" / "results" / "final_model" / "generator.safetensors",
        bundle=bundle,
    )


@pytest.fixture(scope="session")
def generator(zoo: SimpleNamespace, encoder: PromptEncoder) -> LoraGenerator:
    return LoraGenerator(zoo.bundle, encoder)

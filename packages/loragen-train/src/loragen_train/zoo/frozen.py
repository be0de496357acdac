"""The frozen language model of a zoo, with room for adapters, and the one initialisation that all of them grow from."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lora_tokenizer import LoraAdapter, read_adapter
from loragen_infer.adapters import AdapterStack, BatchedLora
from loragen_infer.files import atomic_folder, locked, write_json
from loragen_infer.likelihood import read_prefix, response_nll
from loragen_infer.models.base_model import load_base_model, save_base_model
from loragen_infer.models.locate import hub_name, locate_model
from loragen_infer.samples import TokenizedExample, num_common_tokens
from loragen_infer.words import nearest
from loragen_infer.zoo import TaskQuality
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from loragen_train.configs.collect import CollectConfig
from loragen_train.errors import LoragenTrainError
from loragen_train.zoo import records
from loragen_train.zoo.passes import passes

__all__ = ["INITIAL", "FrozenModel", "load_frozen"]

INITIAL = "initial_adapter"
"""The folder of the initialisation."""
# Tokens; where the two implementations of attention take as long.
_SHORT = 128


@dataclass(frozen=True, kw_only=True)
class FrozenModel:
    """A language model whose layers have room for adapters."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batched: BatchedLora
    """The adapters' places in ``model``."""
    initial: LoraAdapter
    """The initialisation of every adapter."""
    tokens_per_pass: int
    """Most tokens, padding included, that go through the model at once."""
    attention: str
    """The implementation of attention that the model came with."""
    is_checkpointed: bool = False
    """Whether activations are computed again in the backward pass."""

    def choose_attention(self, tasks: Iterable[Sequence[TokenizedExample]]) -> None:
        """Take the implementation of attention that is fastest for samples of this length."""
        longest = max((len(item.input_ids) for task in tasks for item in task), default=0)
        # On a CPU the backward pass of the fused one takes several times that of plain products for short sequences;
        # for long ones these take too much memory.
        is_plain = self.model.device.type == "cpu" and longest <= _SHORT
        self.model.set_attn_implementation("eager" if is_plain else self.attention)

    def num_shared(self, tasks: Iterable[Sequence[TokenizedExample]], *, dropout: float = 0.0) -> int:
        """Return how many tokens all prompts begin with that an adapter has to read once only for all its samples."""
        if dropout or self.is_checkpointed:
            return 0  # each sample draws its own zeros; and checkpoints keep no keys and values
        # The last token of a prompt, which predicts the response, is each sample's own.
        return num_common_tokens(item.input_ids[: item.num_prompt_tokens][:-1] for task in tasks for item in task)

    @contextmanager
    def response_nll(
        self,
        adapters: AdapterStack | None,
        samples: Sequence[Sequence[TokenizedExample]],
        *,
        num_shared: int,
        dropout: float = 0.0,
    ) -> Iterator[Tensor]:
        """Yield the summed NLL of each sample's response, ``[B]``: of all samples of the first adapter, and so on.

        A backward pass belongs into the block. Without adapters it is that of the model alone.
        """

        def applied(num_samples: list[int]) -> AbstractContextManager[None]:
            if adapters is None:
                return nullcontext()
            return self.batched.applied(adapters, num_samples=num_samples, dropout=dropout)

        num_samples = [len(of_adapter) for of_adapter in samples]
        items = [item for of_adapter in samples for item in of_adapter]
        cache = None
        if num_shared:
            with applied([1] * len(samples)):
                cache = read_prefix(self.model, items[0].input_ids[:num_shared], num_rows=len(samples))
        if cache is None:
            num_shared = 0
        elif len(set(num_samples)) == 1:
            cache.batch_repeat_interleave(num_samples[0])
        else:
            counts = torch.tensor(num_samples, device=self.model.device)
            cache.batch_select_indices(torch.arange(len(samples), device=self.model.device).repeat_interleave(counts))
        with applied(num_samples):
            yield response_nll(self.model, items, padding=self._padding, cache=cache, num_read=num_shared)

    @torch.no_grad()  # under inference mode the buffers that a model makes could not be trained through later
    def mean_nll(
        self, adapters: AdapterStack | None, tests: Sequence[Sequence[TokenizedExample]]
    ) -> list[float | None]:
        """Return the NLL per response token of each adapter on its samples, or of the model alone on all of them.

        None for an adapter without any.
        """
        judged = [index for index, test in enumerate(tests) if test]
        totals = dict.fromkeys(judged, 0.0)
        num_shared = self.num_shared(tests)
        lengths = [[len(item.input_ids) - num_shared for item in tests[index]] for index in judged]
        for part in passes(lengths, self.tokens_per_pass):
            chosen = [judged[place] for place in part.adapters]
            samples = [[tests[index][row] for row in rows] for index, rows in zip(chosen, part.rows, strict=True)]
            used = None if adapters is None else adapters.select(chosen)
            with self.response_nll(used, samples, num_shared=num_shared) as nll_B:
                of_adapters = torch.split(nll_B, [len(rows) for rows in part.rows])
            for index, of_adapter in zip(chosen, of_adapters, strict=True):
                totals[index] += float(of_adapter.sum())
        return [
            totals[index] / sum(len(item.response_ids) for item in test) if test else None
            for index, test in enumerate(tests)
        ]

    def judge(self, adapters: AdapterStack, tests: Sequence[Sequence[TokenizedExample]]) -> list[TaskQuality | None]:
        """Return how likely each adapter, and the model without it, holds the responses of its task's test samples.

        None for a task without any.
        """
        return [
            None if nll is None or base_nll is None else TaskQuality(nll=nll, base_nll=base_nll)
            for nll, base_nll in zip(self.mean_nll(adapters, tests), self.mean_nll(None, tests), strict=True)
        ]

    @property
    def _padding(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)


def load_frozen(config: CollectConfig, output_dir: Path, fabric: Fabric) -> FrozenModel:
    """Load the language model of the zoo in ``output_dir``, and read the initialisation, or make it.

    Raises:
        LoragenTrainError: The model is not the one that the zoo was begun with, or lacks a target module.
        LoragenInferError: It cannot be loaded.
    """
    name, training = config.base_model, config.training
    if locate_model(name, kind="base model").endswith(".gguf"):
        with locked(output_dir, None):
            # Unpacked once, and not asked for again: the zoo goes on with the weights that it was begun with.
            name = str(save_base_model(name, output_dir / "base_model").resolve())
    model, tokenizer = load_base_model(name, device_map=training.device_map)
    digest = records.hash_weights(model)
    folder = output_dir / INITIAL
    # What all processes share is made by one of them.
    with locked(output_dir, None):
        records.check_base_model(output_dir, config.base_model, digest)
        if not folder.is_dir():
            _check_target_modules(config, model)
            _write_initial(config, model, name, folder)
        precision = records.decide_precision(config, output_dir)
    for parameter in model.parameters():
        # No buffers: rotary frequencies in bfloat16 would turn far positions by other angles than the model knows.
        parameter.data = parameter.data.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    if training.device_map is None:
        torch.nn.Module.to(model, fabric.device)
    if training.gradient_checkpointing:
        enable: Callable[..., None] = model.gradient_checkpointing_enable
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for module in model.modules():
            # These alone, so that no dropout of the model's own awakes.
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True
    initial = read_adapter(folder)
    budget = training.tokens_per_pass
    return FrozenModel(
        model=model,
        tokenizer=tokenizer,
        batched=BatchedLora(model, initial.modules),
        initial=initial,
        attention=model.config._attn_implementation,
        is_checkpointed=training.gradient_checkpointing,
        tokens_per_pass=(1024 if fabric.device.type == "cpu" else 16_384) if budget == "auto" else budget,
    )


def _write_initial(config: CollectConfig, model: PreTrainedModel, name: str, folder: Path) -> None:
    torch.manual_seed(config.seed)
    fresh = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=name, **asdict(config.lora))
    )
    with atomic_folder(folder) as part:
        fresh.save_pretrained(str(part))
        settings = part / "adapter_config.json"
        known_as = {"base_model_name_or_path": hub_name(config.base_model) or name}
        write_json(settings, {**records.read_record(settings), **known_as})
        write_json(part / "settings.json", {"settings": records.shared_settings(config)})
    fresh.unload()


def _check_target_modules(config: CollectConfig, model: PreTrainedModel) -> None:
    """Name a target module that ``model`` lacks; PEFT keeps silent as long as it has one of them."""
    names = [name for name, _ in model.named_modules()]
    for module in config.lora.target_modules:
        # PEFT's rule for a list: the whole name of a module, or its end from a dot on.
        if not any(f".{name}".endswith(f".{module}") for name in names):
            known = nearest(module, sorted({name.rpartition(".")[2] for name in names}))
            raise LoragenTrainError(f"lora.target_modules names {module!r}, which {config.base_model} lacks{known}.")

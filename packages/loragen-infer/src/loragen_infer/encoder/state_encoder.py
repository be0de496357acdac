"""The encoder of states: what the frozen language model itself makes of a prompt, at the last token before its answer.

Decided here: the prompt is tokenized as for training and scoring (chat template and all). The model computes in float32
and without padding, whatever it is stored in, so that training and inference agree to rounding. Most of a state says no
more than that an answer begins: what fixed texts have in common is taken off, so that angles mean something. Layers
above the one asked for are thrown away, and what all prompts begin with is read once.

Legend: n prompts, S tokens of a prompt, D width of a state.
"""

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loragen_infer.encoder.base import PROBE, CachedEncoder, EncoderRecord
from loragen_infer.errors import LoragenInferError
from loragen_infer.models.base_model import load_base_model
from loragen_infer.models.locate import hub_name
from loragen_infer.samples import Example, num_common_tokens, tokenize_example

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["REFERENCES", "StateEncoder"]

REFERENCES = (
    "What is the capital of Australia?",
    "Translate to Spanish: good morning",
    "Summarize: The meeting was long, and nothing was decided.",
    "Write a haiku about rain.",
    "17 + 25 =",
    "Correct the grammar: she go to school",
    "Is this review positive or negative? I loved it.",
    "List three fruits.",
    "def add(a, b):",
    "Sort these numbers: 3, 1, 2",
    "Who wrote Hamlet?",
    "Explain photosynthesis to a child.",
    "Reverse the word: apple",
    "Complete the sentence: The sun rises in the",
    "Choose the right answer: (A) cat (B) dog",
    "Give the opposite of hot.",
)
"""The texts whose mean state is taken off: of many kinds, and the same for every model and training."""

# What changes a state and shows neither in a weight nor in a token.
_NETWORK = ("model_type", "hidden_act", "num_attention_heads", "num_key_value_heads")


class StateEncoder(CachedEncoder):
    """The states of a language model's layer at the last token of each prompt, less the mean of reference texts.

    Args:
        name: The base model: a folder, a ``.gguf`` file or a hub name.
        layer: The layer whose output is taken: from 1 to the number of layers, or ``"middle"``, half of it.
        device: A torch device such as ``"cpu"`` or ``"cuda:0"``.
        cache_dir: Folder of the embedding cache; see :class:`loragen_infer.encoder.base.CachedEncoder`.

    Raises:
        LoragenInferError: The model is not found or cannot be loaded, it has no such layer, or the device cannot be
            used.

    Example:
        .. code-block:: python

            encoder = StateEncoder("HuggingFaceTB/SmolLM2-135M-Instruct", layer="middle")
            embeddings_nD = encoder.encode(["What is 2 + 3?", "Spell 'cat' backward."])  # [2, 576]
    """

    def __init__(
        self,
        name: str,
        *,
        layer: int | Literal["middle"] = "middle",
        device: "str | torch.device" = "cpu",
        cache_dir: Path | None = None,
    ) -> None:
        super().__init__(cache_dir)
        import torch

        self._model, self._tokenizer = load_base_model(name)
        self.name = hub_name(name) or str(Path(name).expanduser().resolve())
        config = self._model.config.get_text_config(decoder=True)
        self.layer: int = config.num_hidden_layers // 2 if layer == "middle" else layer
        """The layer, counted from 1."""
        self.embedding_dim = config.hidden_size
        self._limit: int | None = getattr(config, "max_position_embeddings", None)
        _keep_layers(self._model, name, self.layer).register_forward_hook(self._on_output)
        self._state_nSD: torch.Tensor | None = None
        self._model.requires_grad_(False)
        # Only now, since the rest may be too much for the device, or for the memory in float32.
        torch.nn.Module.to(self._model, device=device, dtype=torch.float32)
        self._fingerprint: str | None = None
        self._reference_D: torch.Tensor | None = None
        probes = [self._tokenize(text) for text in ("a", "Z", "9")]
        self._added = max(len(ids) for ids in probes)
        self._prefix = probes[0][: num_common_tokens([*probes, probes[0][:-1]])]
        with torch.no_grad():
            self._prefix_cache = self._read_prefix()

    @property
    def device(self) -> "torch.device":
        return self._model.device

    @property
    def fingerprint(self) -> str:
        # The weights stay as they are, so once is enough.
        if self._fingerprint is None:
            self._fingerprint = _content_fingerprint(self._model, self._tokenizer, self.layer)
        return self._fingerprint

    @property
    def record(self) -> EncoderRecord:
        return EncoderRecord(
            condition=f"lm:{self.layer}",
            text_encoder_name=None,
            text_encoder_revision=None,
            text_encoder_fingerprint=None,
            condition_model_name=self.name,
            condition_model_fingerprint=self.fingerprint,
        )

    def to(self, device: "str | torch.device") -> None:
        import torch

        torch.nn.Module.to(self._model, device)
        with torch.no_grad():
            self._prefix_cache = self._read_prefix()

    @property
    def max_tokens(self) -> int | None:
        return self._limit

    @property
    def _num_added(self) -> int:
        return self._added

    def _lengths(self, prompts: Sequence[str]) -> list[int]:
        return [len(self._tokenize(prompt)) for prompt in prompts]

    def _tokenize(self, prompt: str) -> list[int]:
        tokenized = tokenize_example(self._tokenizer, Example(prompt=prompt, response=""))
        return tokenized.input_ids[: tokenized.num_prompt_tokens]

    def _encoded(self, prompts: list[str], batch_size: int) -> "Iterator[dict[str, torch.Tensor]]":
        import torch

        if not prompts:
            return
        if self._reference_D is None:
            of_references = itertools.chain.from_iterable(
                batch.values() for batch in self._directions(REFERENCES, len(REFERENCES))
            )
            self._reference_D = torch.stack(list(of_references)).mean(dim=0)
        for batch in self._directions(prompts, batch_size):
            yield {
                prompt: torch.nn.functional.normalize(direction_D - self._reference_D, dim=0)
                for prompt, direction_D in batch.items()
            }

    def _directions(self, prompts: Sequence[str], batch_size: int) -> "Iterator[dict[str, torch.Tensor]]":
        """Yield the states of length one as they are, on the CPU."""
        num_begun = len(self._prefix)
        rows = []
        for prompt in prompts:
            ids = self._tokenize(prompt)
            # The first tokens of a prompt may have merged with what stands before it.
            begins = self._prefix_cache is not None and ids[:num_begun] == self._prefix
            if self._limit is not None and len(ids) > self._limit:
                # What asks for the answer stays, and what stands before the prompt.
                ids = ids[:num_begun] + ids[len(ids) - self._limit + num_begun :]
            rows.append((begins, ids[num_begun:] if begins else ids, prompt))
        # The longest first, so that memory runs out at once or never.
        rows.sort(key=lambda row: (row[0], len(row[1])), reverse=True)
        for (begins, _), group in itertools.groupby(rows, key=lambda row: (row[0], len(row[1]))):
            alike = list(group)
            for start in range(0, len(alike), batch_size):
                batch = alike[start : start + batch_size]
                state_nD = self._states([ids for _, ids, _ in batch], begins=begins).cpu()
                yield {prompt: state_D for (_, _, prompt), state_D in zip(batch, state_nD, strict=True)}

    def _states(self, ids_nS: list[list[int]], *, begins: bool) -> "torch.Tensor":
        """Return the states ``[n, D]`` of length one of prompts of one length; ``begins``: the prefix is left out."""
        import torch

        options: dict[str, Any] = {}
        if begins:
            options["past_key_values"] = copy.deepcopy(self._prefix_cache)
            options["past_key_values"].batch_repeat_interleave(len(ids_nS))
        self._model(torch.tensor(ids_nS, device=self.device), use_cache=begins, logits_to_keep=1, **options)
        assert self._state_nSD is not None, "the hook has put it there"  # noqa: S101
        state_nD, self._state_nSD = self._state_nSD[:, -1], None
        if not torch.isfinite(state_nD).all():
            raise LoragenInferError(
                f"The base model {self.name!r} makes NaN or Inf of a prompt at layer {self.layer}; take another layer, "
                "or the condition 'sentence'."
            )
        return torch.nn.functional.normalize(state_nD, dim=1)

    def _on_output(self, _module: "torch.nn.Module", _inputs: Any, output: Any) -> None:
        self._state_nSD = output[0] if isinstance(output, tuple) else output

    def _read_prefix(self) -> Any:
        from loragen_infer.likelihood import read_tokens

        read = read_tokens(self._model, [self._prefix], padding=0)
        return None if read is None else read.cache


def _keep_layers(model: "PreTrainedModel", name: str, number: int) -> "torch.nn.Module":
    """Leave the first ``number`` layers of ``model``, and next to no head, and return the last of them."""
    import torch

    config = model.config.get_text_config(decoder=True)
    total = config.num_hidden_layers
    if not 1 <= number <= total:
        raise LoragenInferError(
            f"The condition asks for layer {number} of the base model {name!r}, which has the layers 1 to {total}; "
            "take one of them, or middle."
        )
    decoder: torch.nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    lists = [module for module in decoder.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = next((layers for layers in lists if len(layers) == total), None)
    if layers is None:
        raise LoragenInferError(
            f"The base model {name!r} ({type(model).__name__}) has no list of {total} layers to take states from; use "
            "the condition 'sentence'."
        )
    del layers[number:]
    config.num_hidden_layers = number
    if vars(config).get("layer_types"):  # of some models it follows from the number
        config.layer_types = config.layer_types[:number]
    head: torch.nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    # A single row: that of a large vocabulary would fill memory, and some models ask for its dtype.
    head.weight = torch.nn.Parameter(torch.zeros(1, *head.weight.shape[1:]))
    head.register_parameter("bias", None)
    return layers[-1]


def _content_fingerprint(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", layer: int) -> str:
    import torch

    config = model.config.get_text_config(decoder=True)
    facts = {
        "layer": layer,
        "network": {key: getattr(config, key, None) for key in _NETWORK},
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "template": tokenizer.chat_template,
        "probe": tokenizer(PROBE)["input_ids"],
        "references": REFERENCES,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for value in itertools.chain(model.state_dict().values(), _frequencies(model)):
        digest.update(str(tuple(value.shape)).encode())
        digest.update(value.detach().float().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _frequencies(model: "PreTrainedModel") -> "Iterator[torch.Tensor]":
    """How fast rotary positions turn: computed from settings whose names change, and rounded as machines differ."""
    for name, value in model.named_buffers():
        if name.endswith("inv_freq"):
            yield value.double().log2().mul(1000).round()

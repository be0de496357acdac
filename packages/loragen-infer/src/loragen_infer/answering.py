"""What a language model answers to prompts: the likeliest token at each step, so the same prompt gets the same answer.

Prompts are read, and answers end, as in training and evaluation.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from loragen_infer.likelihood import pad_left
from loragen_infer.samples import Example, tokenize_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Questions"]

# The likeliest token and nothing else, whatever the model's own settings add, such as a penalty on words of the prompt.
_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "exponential_decay_length_penalty": None,
    "forced_eos_token_id": None,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "watermarking_config": None,
    "stop_strings": None,
    "prompt_lookup_num_tokens": None,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
}


class Questions:
    """Prompts as token ids, to be asked of one model after another.

    Args:
        tokenizer: The language model's.
        prompts: Texts, each a question of its own.
        max_new_tokens: Longest answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], *, max_new_tokens: int) -> None:
        self._tokenizer, self._max_new_tokens = tokenizer, max_new_tokens
        self.padding = int(tokenizer.pad_token_id or 0)
        # As they are without a response, which may share a token with the prompt.
        alone = [tokenize_example(tokenizer, Example(prompt=prompt, response="")) for prompt in prompts]
        self._prompts = [item.input_ids[: item.num_prompt_tokens] for item in alone]
        self._ends = {item.input_ids[-1] for item in alone if item.response_ids}

    @property
    def longest(self) -> int:
        """Number of tokens of the longest prompt."""
        return max(map(len, self._prompts))

    def answers_of(self, model: Any, *, batch_size: int = 8) -> Iterator[tuple[str, bool]]:
        """Yield what ``model`` answers to each prompt, and whether it ended by itself, ``batch_size`` asked at once."""
        known = model.generation_config.eos_token_id
        ends = self._ends | ({known} if isinstance(known, int) else set(known or ()))
        for start in range(0, len(self._prompts), batch_size):
            prompts = self._prompts[start : start + batch_size]
            inputs = pad_left(prompts, padding=self.padding, device=model.device)
            del inputs["position_ids"]  # which generating counts from the mask
            found = model.generate(
                **inputs,
                **_GREEDY,
                max_new_tokens=self._max_new_tokens,
                eos_token_id=sorted(ends) or None,
                pad_token_id=self.padding,
            )
            for row in found[:, inputs["input_ids"].shape[1] :].tolist():
                end = next((place for place, token in enumerate(row) if token in ends), None)
                yield str(self._tokenizer.decode(row[:end], skip_special_tokens=True)).strip(), end is not None

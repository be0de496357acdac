"""Prompt files from strangers: every line is a request or one sentence, and ids stay inside the output folder."""

import io
import json
import os
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loragen_infer import LoragenInferError
from loragen_infer.generation.prompt_file import PromptFile, Request, opened_prompt_file


def read(content, suffix=".jsonl"):
    content = content.encode() if isinstance(content, str) else content
    return list(PromptFile(io.BytesIO(content), name="file", is_json=suffix != ".txt"))


def refused(content, message, suffix=".jsonl"):
    with pytest.raises(LoragenInferError, match=message) as caught:
        read(content, suffix)
    assert "\n" not in str(caught.value)


def test_a_text_file_has_one_prompt_per_line_named_by_its_number():
    requests = read("\ufeffone\r\n\n  two \nthree\u2028still three", suffix=".txt")
    assert [(request.id, request.prompts) for request in requests] == [
        ("000001", ("one",)),
        ("000003", ("two",)),
        ("000004", ("three\u2028still three",)),
    ]


def test_json_lines_may_carry_ids_and_several_prompts():
    rows = [{"id": "sums", "prompts": ["a", "b"]}, {"prompt": "c"}, {"id": 7, "question": "d", "other": 1}]
    requests = read("\n".join(map(json.dumps, rows)))
    assert [(request.id, request.prompts) for request in requests] == [
        ("sums", ("a", "b")),
        ("000002", ("c",)),
        ("7", ("d",)),
    ]


def test_a_json_list_is_read_as_well():
    assert read('[{"prompt": "a"}, {"id": "x", "text": "b"}]', ".json")[1] == Request(id="x", prompts=("b",))


def test_a_file_can_be_read_again_from_the_start():
    file = PromptFile(io.BytesIO(b"a\nb\n"), name="file", is_json=False)
    assert [request.prompts for request in file] == [request.prompts for request in file] == [("a",), ("b",)]


@pytest.mark.parametrize(
    "hostile",
    [
        *("../../x", "/etc/passwd", "a/b", "a\\b", ".", "..", ".hidden", "", "-rf", "a\0b", "a\nb", "ü", "a" * 101),
        *("a.", "manifest.jsonl", "~", "a b", 1.5, True, ["a"], {"a": 1}),
    ],
)
def test_an_id_that_is_no_plain_name_is_refused(hostile):
    refused(json.dumps({"id": hostile, "prompt": "a"}), r"file, line 1: the id .* cannot be a file name")


@settings(max_examples=200, deadline=None)
@given(identifier=st.text(max_size=8) | st.text(alphabet="./\\~-_ab:\0 ", max_size=8))
def test_whatever_id_is_accepted_stays_in_the_folder(identifier, tmp_path_factory):
    try:
        [request] = read(json.dumps({"id": identifier, "prompt": "a"}))
    except LoragenInferError:
        return
    assert set(request.id) <= set(string.ascii_letters + string.digits + "._-")
    root = tmp_path_factory.getbasetemp().resolve()
    assert (root / request.id).resolve().parent == root


@pytest.mark.parametrize("ids", [("x", "x"), ("x", "X"), ("000002", None)])
def test_an_id_that_is_there_twice_is_refused(ids):
    rows = [{"id": name, "prompt": "a"} if name else {"prompt": "a"} for name in ids]
    refused("\n".join(map(json.dumps, rows)), "line 2: the id .* is there twice")


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        ("", ".txt", "file is empty; it needs one prompt per line"),
        ("\n \n", ".jsonl", "file is empty"),
        ("{", ".jsonl", "file, line 1 is not JSON"),
        ("[" * 100_000, ".jsonl", "file is not JSON"),
        ('"text"', ".jsonl", "line 1 is str, not a JSON object"),
        ('{"prompt": "a"}\n{"promt": "b"}', ".jsonl", "line 2 has the fields .'promt'., but none of prompts, prompt"),
        ('{"prompt": "  "}', ".jsonl", "'prompt' holds '  ', but must be text"),
        ('{"prompt": 3}', ".jsonl", "'prompt' holds 3, but must be text"),
        ('{"prompts": []}', ".jsonl", "'prompts' is .., but must be a list of at least one text"),
        ('{"prompts": "a"}', ".jsonl", "'prompts' is 'a', but must be a list"),
        ('{"prompts": ["a", ""]}', ".jsonl", "'prompts' holds '', but must be text"),
        ('{"prompt": "a\\ud800"}', ".jsonl", "half a character"),
        ('{"prompt": "a\\u0000"}', ".jsonl", "zero byte"),
        (b"ok\nab\xff\n", ".txt", r"line 2 is not UTF-8 text \(byte 3: 0xff\)"),
        (b"ok\n\x00\x01\x02\n", ".txt", "line 2 holds a zero byte, so it is no text"),
        (b"\x89PNG\r\n\x1a\n", ".txt", r"line 1 is not UTF-8 text \(byte 1: 0x89\)"),
        ("3", ".json", "line 1 is int, not a JSON object"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_number(content, suffix, message):
    refused(content, message, suffix)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".txt", ".jsonl", ".json"]))
def test_binary_junk_is_requests_or_one_sentence(content, suffix):
    try:
        requests = read(content, suffix)
    except LoragenInferError as error:
        assert "\n" not in str(error)  # noqa: PT017  # junk may also be requests
    else:
        assert all(prompt.strip() for request in requests for prompt in request.prompts)


def test_a_hundred_thousand_lines_are_read_one_at_a_time(tmp_path):
    import tracemalloc

    path = tmp_path / "many.txt"
    path.write_text("".join(f"Question {index}: {'x' * 200}\n" for index in range(100_000)))
    with opened_prompt_file(str(path)) as file:
        tracemalloc.start()
        assert sum(1 for _ in file) == 100_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < path.stat().st_size  # what is kept is the ids


def test_standard_input_is_text_or_json_lines_by_its_first_character(monkeypatch):
    for content, expected in ((b"a\nb\n", ["a", "b"]), (b'\xef\xbb\xbf\n {"prompt": "c"}\n', ["c"])):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        with opened_prompt_file("-") as file:
            assert [request.prompts[0] for request in file] == expected
            assert len(list(file)) == len(expected)


JSON_LIST = b'[\n {"prompt": "d"},\n {"prompt": "e"}\n]'


@pytest.mark.parametrize(("content", "expected"), [(JSON_LIST, ["d", "e"]), (b"[a list]\n", ["[a list]"])])
def test_a_list_of_objects_is_json_also_where_no_name_says_so(monkeypatch, content, expected):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    reading, writing = os.pipe()  # as of <(a command) in a shell
    os.write(writing, content)
    os.close(writing)
    for path in ("-", f"/dev/fd/{reading}"):
        with opened_prompt_file(path) as file:
            assert [request.prompts[0] for request in file] == expected
    os.close(reading)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(LoragenInferError, match=r"cannot be read: .*; give a"), opened_prompt_file(str(path)):
            pass


def test_the_fingerprint_changes_with_all_that_counts():
    request = Request(id="a", prompts=("x", "y"))
    first = request.fingerprint("g", ("peft", "1.0"))
    assert len(first) == 16
    assert Request(id="b", prompts=("x", "y")).fingerprint("g", ("peft", "1.0")) == first
    others = {
        Request(id="a", prompts=("x",)).fingerprint("g", ("peft", "1.0")),
        Request(id="a", prompts=("xy",)).fingerprint("g", ("peft", "1.0")),
        request.fingerprint("h", ("peft", "1.0")),
        request.fingerprint("g", ("pt", "1.0")),
        request.fingerprint("g", ("peft", "2.0")),
    }
    assert len(others | {first}) == 6

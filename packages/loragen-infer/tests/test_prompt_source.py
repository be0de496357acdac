"""The input of sharded runs: the same shards however it is split into files, and every mistake named."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loragen_infer import LoragenInferError
from loragen_infer.generation.prompt_file import opened_prompt_file
from loragen_infer.sharded.prompt_source import Shard, find_files, plan_shards

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write_parquet(path, rows, **options):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def read(shards):
    return [request for shard in shards for request in Shard.from_json(shard.to_json()).read()]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_shards_are_the_same_however_the_input_is_split(tmp_path, data):
    texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
    rows = data.draw(st.lists(st.lists(texts, min_size=1, max_size=3), min_size=1, max_size=12))
    shard_size = data.draw(st.integers(1, 5))
    whole = tmp_path / "whole.jsonl"
    whole.write_text("".join(json.dumps({"prompts": row}, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    with opened_prompt_file(str(whole)) as file:
        expected = list(file)
    folder = tmp_path / "parts"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    start = 0
    for number in range(len(rows)):
        count = data.draw(st.integers(1, 4))
        part = [{"prompts": row} for row in rows[start : start + count]]
        start += count
        if part and data.draw(st.booleans()):
            write_parquet(folder / f"{number:02d}.parquet", part, row_group_size=data.draw(st.integers(1, 3)))
        else:
            ending = data.draw(st.sampled_from(["", "\n"]))
            text = "\n".join(json.dumps(row) for row in part) + (ending if part else "")
            (folder / f"{number:02d}.jsonl").write_text(text, encoding="utf-8")
    of_one, of_many = (plan_shards(find_files(str(path)), shard_size=shard_size) for path in (whole, folder))
    assert read(of_one) == read(of_many) == expected
    assert [shard.fingerprint("g", ["1"]) for shard in of_one] == [shard.fingerprint("g", ["1"]) for shard in of_many]
    assert [shard.num_adapters for shard in of_one[:-1]] == [shard_size] * (len(of_one) - 1)


def test_a_fingerprint_is_of_ids_prompts_order_generator_and_settings(make, tmp_path):
    rows = [{"id": "a", "prompt": "1"}, {"id": "b", "prompt": "2"}]
    variants = [rows, rows[::-1], rows[:1], [{**rows[0], "id": "c"}, rows[1]], [rows[0], {**rows[1], "prompt": "3"}]]
    shards = []
    for number, variant in enumerate(variants):
        shards += plan_shards([make.rows(tmp_path / f"{number}.jsonl", variant)], shard_size=8)
    marks = {shard.fingerprint("g", ["1"]) for shard in shards}
    assert len(marks | {shards[0].fingerprint("h", ["1"]), shards[0].fingerprint("g", ["2"])}) == len(variants) + 2


def test_files_are_found_by_name_folder_and_pattern(make, tmp_path):
    row = [{"prompt": "1"}]
    (tmp_path / "in" / "b").mkdir(parents=True)
    first = make.rows(tmp_path / "in" / "a.jsonl", row)
    second = write_parquet(tmp_path / "in" / "b" / "c.parquet", row)
    (tmp_path / "in" / "notes.txt").write_text("not mine")
    assert find_files(str(first)) == [first]
    for pattern in (tmp_path / "in", tmp_path / "in" / "**" / "*.[jp]*"):
        assert find_files(str(pattern), without=second.parent) == [first]  # a run's own output is no input
    assert find_files(str(second.parent), without=second.parent) == [second]
    assert find_files(str(tmp_path / "in")) == [first, second]
    assert find_files(str(tmp_path / "in" / "**" / "*.parquet")) == [second]
    for name, words in {
        "none*": "no file",
        "in/b/none": "no file",
        "in/notes.txt": "neither .jsonl nor .parquet",
    }.items():
        with pytest.raises(LoragenInferError, match=words):
            find_files(str(tmp_path / name))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON"),
        ('["a"]', "is list, not a JSON object"),
        ('{"prompts": []}', "must be a list of at least one text"),
        ('{"prompt": " "}', "must be text"),
        ('{"text": "a", "id": "../b"}', "cannot be a file name"),
        ('{"task": "a"}', "none of prompts, prompt"),
        ('{"prompt": "a", "id": "first"}', r"'first' is there twice \(also .*a.jsonl, line 1\)"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    (tmp_path / "a.jsonl").write_text('{"prompt": "1", "id": "first"}\n', encoding="utf-8")
    text = f'{{"prompt": "2"}}\n\n{line}\n'
    (tmp_path / "b.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(LoragenInferError, match=rf"b\.jsonl, line 3.*{words}"):
        plan_shards(find_files(str(tmp_path)), shard_size=2)


def test_a_bad_parquet_file_is_named(tmp_path):
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing more")
    cases = {
        broken: "cannot be read as Parquet",
        write_parquet(tmp_path / "other.parquet", [{"task": "a"}]): "the columns task, but none of prompts",
        write_parquet(tmp_path / "null.parquet", [{"prompt": "a"}, {"prompt": None}]): "row 2 has the fields",
        write_parquet(tmp_path / "numbers.parquet", [{"prompts": [1, 2]}]): "row 1: 'prompts' holds 1",
        write_parquet(
            tmp_path / "empty.parquet", [{"prompt": "a"}][:0] or [{"prompt": ""}]
        ): "row 1: 'prompt' holds ''",
    }
    for path, words in cases.items():
        with pytest.raises(LoragenInferError, match=words):
            plan_shards([path], shard_size=2)


def test_columns_that_a_parquet_row_does_without_are_null(tmp_path):
    rows = [{"id": 7, "prompts": ["a", "b"], "question": None}, {"id": None, "prompts": None, "question": "c"}]
    requests = read(plan_shards([write_parquet(tmp_path / "a.parquet", rows)], shard_size=2))
    assert [(request.id, request.prompts) for request in requests] == [("7", ("a", "b")), ("000002", ("c",))]


def test_an_input_without_prompts_and_one_that_changes_meanwhile_are_refused(make, tmp_path):
    path = make.rows(tmp_path / "a.jsonl", [])
    with pytest.raises(LoragenInferError, match="is empty"):
        plan_shards([path], shard_size=2)
    [shard] = plan_shards([make.rows(path, [{"prompt": "1"}])], shard_size=2)
    make.rows(path, [{"prompt": "2"}])
    with pytest.raises(LoragenInferError, match=r"a\.jsonl changed after it was checked"):
        shard.read()

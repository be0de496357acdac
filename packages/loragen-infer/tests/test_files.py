"""Writing is whole or not at all, whatever goes wrong on the way."""

import errno
import json
import os
import stat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from loragen_infer import LoragenInferError
from loragen_infer.files import atomic_file, atomic_folder, write_json, write_jsonl
from loragen_infer.samples import read_jsonl


class StoppedError(Exception):
    """What a test raises in the middle of writing."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_with_its_content_and_makes_its_folders(tmp_path):
    target = tmp_path / "a" / "b" / "file.txt"
    with atomic_file(target) as part:
        part.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(target.parent) == ["file.txt"]


def write_half(path):
    with atomic_file(path) as part:
        part.write_text("half")
        raise StoppedError


def write_half_a_folder(path):
    with atomic_folder(path) as part:
        (part / "inside.txt").write_text("half")
        raise StoppedError


@pytest.mark.parametrize("write", [write_half, write_half_a_folder])
def test_an_exception_leaves_nothing(tmp_path, write):
    with pytest.raises(StoppedError):
        write(tmp_path / "target")
    assert names(tmp_path) == []


def test_what_is_there_stays_until_it_is_replaced(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(StoppedError):
        write_half(target)
    assert target.read_text() == "old"
    with atomic_file(target) as part:
        part.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_umask(tmp_path, umask, file_mode, folder_mode):
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "file") as part:
            part.write_text("x")
        with atomic_folder(tmp_path / "folder") as part:
            (part / "x").write_text("x")
    finally:
        assert os.umask(before) == umask
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == file_mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == folder_mode


def test_a_folder_appears_with_all_that_is_in_it(tmp_path):
    with atomic_folder(tmp_path / "deep" / "folder") as part:
        (part / "sub").mkdir()
        (part / "sub" / "x.txt").write_text("x")
        assert not (tmp_path / "deep" / "folder").exists()
    assert (tmp_path / "deep" / "folder" / "sub" / "x.txt").read_text() == "x"
    assert names(tmp_path / "deep") == ["folder"]


def test_a_folder_that_holds_something_is_never_replaced(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "precious").write_text("x")
    with (
        pytest.raises(LoragenInferError, match=r"folder cannot be written: .*not empty"),
        atomic_folder(target) as part,
    ):
        (part / "other").write_text("y")
    assert names(target) == ["precious"]
    assert names(tmp_path) == ["folder"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "folder").mkdir()
    with atomic_folder(tmp_path / "folder") as part:
        (part / "x").write_text("x")
    assert names(tmp_path / "folder") == ["x"]


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, writer):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    target = tmp_path / "target"
    message = r"target cannot be written: No space left on device; "
    with pytest.raises(LoragenInferError, match=message), writer(target) as part:
        (part if writer is atomic_file else part / "x").write_text("x")
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LoragenInferError, match=r"cannot be written"), atomic_file(tmp_path / "file" / "x") as part:
        part.write_text("never")


def test_json_is_readable_by_people(tmp_path):
    write_json(tmp_path / "x.json", {"name": "Grüße", "values": [1, 2]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "Grüße" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"name": "Grüße", "values": [1, 2]}


def test_a_row_that_is_not_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_jsonl(tmp_path / "x.jsonl", [{"a": 1}, {"a": object()}])
    assert names(tmp_path) == []


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


# Characters that str.splitlines() takes for the end of a line, and JSON does not.
@example(rows=[{"text": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"}])
@given(rows=st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=4), min_size=1, max_size=5))
def test_jsonl_comes_back_as_it_was(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows

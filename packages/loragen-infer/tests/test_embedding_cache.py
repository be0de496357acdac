"""The embedding cache is right or absent: shared, damaged, full and changed under way."""

import logging
import sqlite3
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loragen_infer import PromptEncoder
from loragen_infer.encoder.embedding_cache import EmbeddingCache

PROMPTS = ["What is 17 + 25?", "Name the capital of France.", "Spell 'cat' backward."]


@pytest.fixture
def cache(tmp_path):
    cache = EmbeddingCache(tmp_path, identity="ab")
    cache.write({"one": torch.tensor([1.0, 2.0]), "two": torch.tensor([3.0, 4.0])})
    return cache


@pytest.fixture
def file(cache, tmp_path):
    return tmp_path / "embeddings-ab.sqlite"


def test_gives_back_what_it_has_and_nothing_else(cache):
    found = cache.read(["two", "three", "one"])
    assert {prompt: tensor.tolist() for prompt, tensor in found.items()} == {"one": [1, 2], "two": [3, 4]}


@settings(max_examples=20, deadline=None)
@given(prompts=st.lists(st.text(max_size=20), unique=True, min_size=1, max_size=5), width=st.integers(1, 4))
def test_any_text_is_a_key(tmp_path_factory, prompts, width):
    cache = EmbeddingCache(tmp_path_factory.mktemp("cache"), identity="ab")
    entries = {prompt: torch.full((width,), float(index)) for index, prompt in enumerate(prompts)}
    cache.write(entries)
    found = cache.read(prompts)
    assert found.keys() == entries.keys()
    assert all(torch.equal(found[prompt], tensor) for prompt, tensor in entries.items())


def test_thousands_of_prompts_in_one_call(tmp_path):
    cache = EmbeddingCache(tmp_path, identity="ab")
    entries = {f"prompt {index}": torch.full((3,), float(index)) for index in range(3000)}
    cache.write(entries)
    found = cache.read(list(entries))
    assert all(torch.equal(found[prompt], tensor) for prompt, tensor in entries.items())


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_left_aside_with_one_warning(cache, file, caplog, content):
    file.write_bytes(content)
    assert cache.read(["one"]) == {}
    cache.write({"one": torch.ones(2)})
    [message] = caplog.messages
    assert "cannot be used" in message
    assert "Remove it if it is damaged" in message
    assert file.read_bytes() == content


def test_a_file_of_an_older_version_is_read_and_written(tmp_path):
    with sqlite3.connect(tmp_path / "embeddings-ab.sqlite") as database:
        database.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB, checksum INTEGER)")
    cache = EmbeddingCache(tmp_path, identity="ab")
    cache.write({"one": torch.ones(2)})
    assert cache.read(["one"])["one"].tolist() == [1, 1]


def test_where_nothing_can_be_written_one_warning_says_so_and_work_goes_on(tmp_path, caplog, encoder):
    (tmp_path / "file").write_text("in the way")
    blocked = PromptEncoder(cache_dir=tmp_path / "file")
    for _ in range(2):
        assert torch.equal(blocked.encode(PROMPTS), encoder.encode(PROMPTS))
    [message] = [message for message in caplog.messages if "cache" in message]
    assert "going on without it" in message


def test_a_full_disk_does_not_stop_the_work(tmp_path):
    # A limit on the size of files is as near to a full disk as a test can get without one.
    script = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from loragen_infer.encoder.embedding_cache import EmbeddingCache\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "cache = EmbeddingCache(Path(sys.argv[1]), identity='ab')\n"
        "cache.write({'small': torch.ones(2)})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "cache.write({'large': torch.ones(100_000)})\n"
        "print('still here')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "still here\n"
    assert "going on without it" in done.stderr
    assert EmbeddingCache(tmp_path, identity="ab").read(["small", "large"]).keys() == {"small"}


def test_two_processes_write_at_once_and_one_is_killed(tmp_path):
    script = (
        "import sys, torch; from pathlib import Path\n"
        "from loragen_infer.encoder.embedding_cache import EmbeddingCache\n"
        "cache = EmbeddingCache(Path(sys.argv[1]), identity='ab')\n"
        "for n in range(int(sys.argv[3])):\n"
        "    cache.write({f'{sys.argv[2]} {n} {i}': torch.full((4,), float(n)) for i in range(8)})\n"
        "    print(n, flush=True)\n"
    )
    run = [sys.executable, "-c", script, str(tmp_path)]
    with (
        subprocess.Popen([*run, "a", "10000"], stdout=subprocess.PIPE, text=True) as endless,
        subprocess.Popen([*run, "b", "20"], stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE) as other,
    ):
        errors = other.communicate()[1]
        last = int(endless.stdout.readline())
        endless.kill()
    assert other.returncode == 0
    assert errors == ""
    cache = EmbeddingCache(tmp_path, identity="ab")
    names = [f"b {n} {i}" for n in range(20) for i in range(8)]
    assert cache.read(names).keys() == set(names)
    assert len(cache.read([f"a {last} {i}" for i in range(8)])) == 8
    with sqlite3.connect(tmp_path / "embeddings-ab.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        groups = database.execute("SELECT count(*) FROM entries").fetchone()[0]
    assert groups % 8 == 0  # a write is whole or not there


def test_the_encoder_reads_what_another_wrote_and_encodes_the_rest(tmp_path, encoder, monkeypatch):
    first = PromptEncoder(cache_dir=tmp_path)
    assert torch.equal(first.encode(PROMPTS[:2]), encoder.encode(PROMPTS[:2]))
    second = PromptEncoder(cache_dir=tmp_path)
    seen = []
    features = second._features
    monkeypatch.setattr(second, "_features", lambda prompts: seen.extend(prompts) or features(prompts))
    torch.testing.assert_close(second.encode(PROMPTS), encoder.encode(PROMPTS), rtol=0, atol=1e-6)
    assert seen == PROMPTS[2:]


def test_changed_weights_never_meet_the_entries_of_the_old_ones(tmp_path):
    encoder = PromptEncoder(cache_dir=tmp_path)
    before = encoder.encode(PROMPTS)
    with torch.no_grad():
        encoder.module.get_parameter("0.model.embeddings.LayerNorm.weight").mul_(2)
    assert not torch.allclose(encoder.encode(PROMPTS), before, atol=1e-3)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_identity_does_not_depend_on_the_calls_before(tmp_path, caplog):
    one, two = PromptEncoder(), PromptEncoder()
    with caplog.at_level(logging.ERROR):
        one.encode(["word " * 500, "word"])
    assert one.fingerprint == two.fingerprint

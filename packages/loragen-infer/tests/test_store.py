"""The store of adapters: made once, kept whole, bounded, shared by threads and processes."""

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from huggingface_hub import metadata_load
from lora_tokenizer import read_adapter
from loragen_infer import AdapterStore, LoraGenerator, LoragenInferError
from loragen_infer.generation.card import model_card
from loragen_infer.generation.config import GenerateConfig
from loragen_infer.generation.prompt_file import Request
from loragen_infer.generation.run import run_generate
from loragen_infer.store import adapter_store, shelf

NAMES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
SCRIPT = """
import sys
from loragen_infer import AdapterStore, LoraGenerator
model, folder, first, last = sys.argv[1:]
store = AdapterStore(folder, LoraGenerator.from_pretrained(model))
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(first), int(last)):
    stored = store.get_or_create([f"say {number}"])
    if stored.is_new:
        print(stored.id, flush=True)
"""


@pytest.fixture
def store(generator, tmp_path):
    return AdapterStore(tmp_path / "adapters", generator)


def start(zoo, folder, first=0, last=40):
    words = [sys.executable, "-c", SCRIPT, zoo.experiment, folder, first, last]
    process = subprocess.Popen(list(map(str, words)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process


def go(process):
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_an_adapter_is_made_once_and_is_what_the_generator_makes(store, generator):
    made = store.get_or_create(["1 + 1", "2 + 3"])
    again = store.get_or_create(["1 + 1", "2 + 3"])
    assert (made.is_new, again.is_new) == (True, False)
    assert made.id == again.id == store.id_of(["1 + 1", "2 + 3"]) == made.path.name
    expected = generator.generate(["1 + 1", "2 + 3"])
    found = read_adapter(made.path)
    assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in expected.tensors.items())
    assert store.find(made.id).path == made.path
    assert [stored.id for stored in store] == [made.id]
    assert len({store.id_of(["1 + 1"]), store.id_of(["1 + 1"], scale=2), store.id_of(["1 + 1", "1 + 1"])}) == 3


def test_it_is_the_same_folder_as_generate_writes_under_the_same_fingerprint(
    store, zoo, generator, tmp_path, monkeypatch
):
    monkeypatch.setattr("loragen_infer.generation.run.load_generator", lambda config: generator)
    made = store.get_or_create(["1 + 1"], scale=2)
    run_generate(GenerateConfig(model="m", prompts=("1 + 1",), scale=2, output=str(tmp_path / "plain")))
    assert visible(made.path) == NAMES
    for name in NAMES:
        assert (made.path / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    prompts = ("of generate",)
    place = store.folder / store.id_of(prompts)
    run_generate(GenerateConfig(model="m", prompts=prompts, output=str(place)))
    assert store.get_or_create(prompts).is_new is False


def test_the_head_of_a_card_names_no_place_of_this_machine(zoo, encoder, tmp_path):
    for base_model, named in ((str(tmp_path), None), ("lab/base", "lab/base"), (None, None)):
        generator = LoraGenerator(zoo.bundle.with_base_model(base_model), encoder)
        made = AdapterStore(tmp_path / "adapters", generator).get_or_create(["a"])
        head = metadata_load(made.path / "README.md")
        assert head.get("base_model") == named  # a hub refuses any other
        assert head["loragen_request"] == made.id


def test_many_are_made_together_each_with_its_scale(store, generator):
    requests = [(["a"], 1.0), (["b", "c"], -2.0), (["a"], 1.0)]
    made = store.get_or_create_many(requests)
    assert [stored.is_new for stored in made] == [True, True, False]
    assert made[0].path == made[2].path
    expected = generator.generate(["b", "c"], scale=-2)
    for name, tensor in read_adapter(made[1].path).tensors.items():
        torch.testing.assert_close(tensor, expected.tensors[name], rtol=0, atol=1e-5)
    with pytest.raises(LoragenInferError, match="Prompt 1 of 1 has no text"):
        store.get_or_create_many([(["new"], 1.0), ([" "], 1.0)])
    assert len(store) == 2


def test_more_are_made_at_once_than_files_may_be_open(zoo, tmp_path):
    script = """import resource, sys
from loragen_infer import AdapterStore, LoraGenerator
store = AdapterStore(sys.argv[2], LoraGenerator.from_pretrained(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print(sum(stored.is_new for stored in store.get_or_create_many([([f"say {n}"], 1.0) for n in range(150)])))
"""
    words = [sys.executable, "-c", script, zoo.experiment, tmp_path / "adapters"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("150\n", 0), done.stderr


def test_threads_make_an_adapter_once(store, generator, monkeypatch):
    calls = []
    generate_many = generator.generate_many
    monkeypatch.setattr(
        generator, "generate_many", lambda tasks, **options: calls.extend(tasks) or generate_many(tasks, **options)
    )
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda number: store.get_or_create([f"say {number % 4}"]), range(32)))
    assert sorted(calls) == [(f"say {number}",) for number in range(4)]
    assert sum(stored.is_new for stored in made) == 4
    assert all(visible(stored.path) == NAMES for stored in made)


def test_one_thread_generates_while_another_writes(store, monkeypatch):
    write, is_writing, other_is_there = adapter_store.write_peft_folder, threading.Event(), threading.Event()

    def held_up(adapter, path, **options):
        if not is_writing.is_set():
            is_writing.set()
            assert other_is_there.wait(30)
        write(adapter, path, **options)

    monkeypatch.setattr(adapter_store, "write_peft_folder", held_up)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(store.get_or_create, ["say 1"])
        assert is_writing.wait(30)
        store.get_or_create(["say 2"])
        other_is_there.set()
        held.result()
    assert len(store) == 2


def test_processes_make_an_adapter_once_and_a_killed_one_leaves_nothing_half_written(zoo, store):
    ends_well, victim = start(zoo, store.folder, 0, 30), start(zoo, store.folder, 0, 10_000)
    for process in (ends_well, victim):
        go(process)
    made = ends_well.communicate(timeout=120)[0].split()
    while len(visible(store.folder)) < 45:
        assert victim.poll() is None
        time.sleep(0.01)
    victim.kill()
    made += victim.communicate()[0].split()
    assert len(made) == len(set(made)) >= 44
    names = visible(store.folder)
    assert set(made) <= set(names)
    for name in names:
        assert visible(store.folder / name) == NAMES
        read_adapter(store.folder / name)
    another = AdapterStore(store.folder, store.generator)
    assert not another.get_or_create(["say 43"]).is_new
    assert another.get_or_create(["after the kill"]).is_new
    assert not [path for path in store.folder.iterdir() if ".tmp-" in path.name]


def test_a_full_store_removes_what_was_used_least_recently_and_nothing_else(generator, tmp_path):
    store = AdapterStore(tmp_path / "few", generator, max_adapters=3)
    (store.folder / "0123456789abcdef").mkdir(parents=True)  # somebody else's
    (store.folder / "notes").mkdir()
    ids = [store.get_or_create([f"say {number}"]).id for number in range(2)]
    os.utime(store.folder / ids[1], ns=(1, 2))
    os.utime(store.folder / ids[0], ns=(1, 1))
    store.find(ids[0])
    ids.append(store.get_or_create(["say 2"]).id)
    assert {stored.id for stored in store} == {ids[0], ids[2]}
    assert {"0123456789abcdef", "notes"} <= set(visible(store.folder))
    assert not list(store.folder.rglob("removed/*"))
    with pytest.raises(LoragenInferError, match=r"4 adapters are asked for at once, and the store .* keeps 3"):
        store.get_or_create_many([([f"more {number}"], 1.0) for number in range(4)])
    with pytest.raises(LoragenInferError, match="max_adapters is 0"):
        AdapterStore(tmp_path, max_adapters=0)


def test_what_is_used_while_room_is_made_is_not_removed(generator, tmp_path, monkeypatch):
    store = AdapterStore(tmp_path / "few", generator, max_adapters=4)
    ids = [store.get_or_create([f"say {number}"]).id for number in range(4)]
    for age, name in enumerate(ids):
        os.utime(store.folder / name, ns=(age, age))
    can_be_made_again, found = shelf.can_be_made_again, []

    def look(folder, name):  # as it is asked of every adapter in turn
        if not found:
            found.append(AdapterStore(store.folder).find(ids[2]))
        return can_be_made_again(folder, name)

    monkeypatch.setattr(shelf, "can_be_made_again", look)
    store.get_or_create_many([([f"more {number}"], 1.0) for number in range(3)])
    assert found[0].path.is_dir()
    assert len(store) == 4


def test_what_was_removed_as_it_was_found_is_made_again(store, monkeypatch):
    made, utime = store.get_or_create(["a"]), os.utime

    def too_late(path):
        shutil.rmtree(path)
        utime(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", too_late)
        assert store.find(made.id) is None
    assert store.get_or_create(["a"]).path.is_dir()


def test_what_somebody_else_put_there_keeps_no_adapter_from_being_removed(generator, tmp_path):
    store = AdapterStore(tmp_path / "few", generator, max_adapters=3)
    (store.folder / "0123456789abcdef").mkdir(parents=True)
    os.utime(store.folder / "0123456789abcdef", ns=(1, 1))  # nothing was used less recently
    for number in range(5):
        store.get_or_create([f"say {number}"])
    assert len(store) == 2
    assert (store.folder / "0123456789abcdef").is_dir()


def test_an_adapter_that_is_asked_for_is_not_removed_for_its_neighbours(generator, tmp_path):
    store = AdapterStore(tmp_path / "few", generator, max_adapters=2)
    kept = store.get_or_create(["a"])
    with pytest.raises(LoragenInferError, match=r"3 adapters are asked for at once, and the store .* keeps 2"):
        store.get_or_create_many([(["a"], 1.0), (["b"], 1.0), (["c"], 1.0)])
    assert kept.path.is_dir()
    both = store.get_or_create_many([(["a"], 1.0), (["b"], 1.0), (["a"], 1.0)])
    assert all(stored.path.is_dir() for stored in both)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_never_registered(generator, tmp_path, scale):
    store = AdapterStore(tmp_path / "store", generator)
    with pytest.raises(LoragenInferError, match=r"The scale is (nan|inf), where a finite number belongs\."):
        store.register(["say ab"], scale=scale)
    assert not (tmp_path / "store").exists()


def test_all_adapters_of_one_call_are_there_though_room_is_made_for_many(generator, tmp_path):
    # From 128 on room is made for more than one at a time.
    store = AdapterStore(tmp_path / "many", generator, max_adapters=128)
    store.get_or_create_many([([f"say {number}"], 1.0) for number in range(128)])
    stored = store.get_or_create_many([([f"say {number}"], 1.0) for number in range(1, 129)])
    assert [one.is_new for one in stored] == [False] * 127 + [True]
    assert all(one.path.is_dir() for one in stored)


def test_a_store_stays_within_its_bound_whoever_makes_adapters(generator, tmp_path):
    stores = [AdapterStore(tmp_path / "few", generator, max_adapters=5) for _ in range(2)]
    for number in range(24):
        assert stores[number % 2].get_or_create([f"say {number}"]).path.is_dir()
        assert len(stores[0]) <= 6


def test_a_bound_that_somebody_has_set_holds_for_those_that_set_none(generator, tmp_path):
    AdapterStore(tmp_path / "few", generator, max_adapters=2).get_or_create(["say 0"])
    store = AdapterStore(tmp_path / "few", generator)
    for number in range(1, 5):
        store.get_or_create([f"say {number}"])
    assert len(store) == 2
    with pytest.raises(LoragenInferError, match=r"3 adapters are asked for at once, and the store .* keeps 2"):
        store.get_or_create_many([([f"more {number}"], 1.0) for number in range(3)])
    AdapterStore(tmp_path / "few", generator, max_adapters=5).get_or_create(["raised"])
    another = AdapterStore(tmp_path / "few", generator)
    for number in range(9):
        another.get_or_create([f"again {number}"])
    assert len(another) == 5
    (store.folder / ".store" / "bound.json").write_text("{", encoding="utf-8")
    with pytest.raises(LoragenInferError, match=r"bound\.json cannot be read .*; remove it\."):
        AdapterStore(tmp_path / "few", generator).get_or_create(["damaged"])


def test_an_adapter_that_was_tuned_is_never_removed(generator, tmp_path):
    store = AdapterStore(tmp_path / "few", generator, max_adapters=2)
    tuned = store.get_or_create(["tuned"])
    request = Request(id="adapter", prompts=("tuned",))
    text = model_card(
        request,
        base_model="m",
        generator_fingerprint="g",
        request_fingerprint=tuned.id,
        scale=1.0,
        omit_prompts=False,
        num_tuned_on=4,
    )
    (tuned.path / "README.md").write_text(text, encoding="utf-8")
    os.utime(tuned.path, ns=(1, 1))
    for number in range(4):
        store.get_or_create([f"say {number}"])
    assert store.find(tuned.id)
    assert len(store) == 2
    # What has been found once is known; a card that cannot be read now says nothing of what it was made from.
    (tuned.path / "README.md").write_text("# Mine\n", encoding="utf-8")
    os.utime(tuned.path, ns=(1, 1))
    for number in range(4):
        store.get_or_create([f"more {number}"])
    assert tuned.path.is_dir()


@pytest.mark.parametrize(
    "wrong", ["../../etc", "..", "", "0" * 15, "0" * 17, "G" * 16, "0" * 15 + "\n", "A" * 16, 7, None]
)
def test_an_id_that_is_none_is_refused(store, wrong):
    for ask in (store.find, store.find_or_create, lambda name: store.merge([name], [1.0])):
        with pytest.raises(LoragenInferError, match="is no id of an adapter; an id is 16 hexadecimal digits"):
            ask(wrong)
    assert not store.folder.exists()


def test_a_link_is_no_adapter(store, tmp_path):
    made = store.get_or_create(["a"])
    made.path.rename(tmp_path / "elsewhere")
    made.path.symlink_to(tmp_path / "elsewhere")
    assert store.find(made.id) is None
    assert len(store) == 0


def test_registered_prompts_become_an_adapter_at_first_use(store, generator, zoo, make, encoder):
    name = store.register(["a", "b"], scale=0.5)
    assert name == store.id_of(["a", "b"], scale=0.5)
    assert store.find(name) is None
    assert store.find_or_create(name).is_new
    assert not store.find_or_create(name).is_new
    assert store.find_or_create("0" * 16) is None
    other = type(generator)(make.bundle(zoo.adapters, seed=5), encoder)
    late = store.register(["later"])
    with pytest.raises(LoragenInferError, match=r"registered with another generator .*; register them again"):
        AdapterStore(store.folder, other).find_or_create(late)


def test_a_merged_adapter_is_the_weighted_sum(store):
    ids = [store.get_or_create([text]).id for text in ("a", "b")]
    merged = AdapterStore(store.folder).merge(ids, [0.5, -2])  # which needs no generator
    again = store.merge(ids, [0.5, -2.0])
    assert (merged.is_new, again.is_new, again.id) == (True, False, merged.id)
    first, second, both = (read_adapter(store.folder / name) for name in (*ids, merged.id))
    for module in both.modules:
        expected = 0.5 * first.delta_weight(module) - 2 * second.delta_weight(module)
        torch.testing.assert_close(both.delta_weight(module), expected)
    assert f"-2 times `{ids[1]}`" in (merged.path / "README.md").read_text()
    assert len(store) == 3
    with pytest.raises(LoragenInferError, match=f"There is no adapter {'0' * 16} in the store"):
        store.merge(["0" * 16], [1.0])


def test_what_cannot_be_done_is_one_sentence(generator, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        store = AdapterStore(place, generator)
        assert len(store) == 0
        with pytest.raises(LoragenInferError, match=r"cannot be written: .*; choose another place or free it\.$"):
            store.get_or_create(["a"])
    unreadable = AdapterStore(tmp_path / ("x" * 300), generator)
    for ask in (lambda: len(unreadable), lambda: unreadable.find("0" * 16), lambda: unreadable.get_or_create(["a"])):
        with pytest.raises(LoragenInferError, match=r"xxx\S* is longer than the system takes; give a shorter one"):
            ask()
    with pytest.raises(LoragenInferError, match="has no generator, so it makes no adapters; give it one"):
        AdapterStore(tmp_path).get_or_create(["a"])
    with pytest.raises(LoragenInferError, match="are the text 'abc'; give a list of texts"):
        AdapterStore(tmp_path / "new", generator).get_or_create("abc")
    assert not (tmp_path / "new").exists()

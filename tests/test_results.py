"""The results: which tasks count as never seen, what means and intervals say, and that the README says the same."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from loragen_infer.samples import Example
from loragen_infer.zoo import JointFold, SampleFile, ZooManifest, ZooTask
from loragen_train.configs.collect import CollectTask
from loragen_train.prompts.splits import read_all_samples

from demo.steps import ROOT
from results import page, run, summary, twins, work
from results.plan import FULL, QUICK
from results.short_tasks import ShortTask, short_tasks
from results.side_by_side import SideBySide

PROMPTS = {
    "sums": [f"What is {a} + {b}?" for a in range(3) for b in range(3)],
    "additions": [f"What is {a} + {b} + 1?" for a in range(3) for b in range(3)],
    "spelling": [f"Spell the word {word} backward." for word in ("cat", "house", "tree", "river")],
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> ZooManifest:
    """Two tasks to train on, and two held out, of which one is worded like a training task."""
    folder = tmp_path_factory.mktemp("zoo")
    tasks = []
    for name, prompts, source, held_out in (
        ("sums", "sums", "reasoning-gym:sums?max_terms=2", False),
        ("spelling", "spelling", "reasoning-gym:spelling", False),
        ("additions", "additions", "reasoning-gym:additions", True),
        ("words", "spelling", "reasoning-gym:spelling?max_length=5", True),
    ):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps({'prompt': prompt, 'response': '1'})}\n" for prompt in PROMPTS[prompts]))
        (folder / "adapters" / name).mkdir(parents=True)
        samples = SampleFile.of(file, folder)
        tasks.append(
            ZooTask(
                name=name,
                sources=[source],
                held_out=held_out,
                prompts=samples,
                test=samples,
                adapters=[f"adapters/{name}"],
            )
        )
    manifest = ZooManifest(base_model="tiny", tasks=tasks, joint="adapters/sums", folder=folder)
    folds = [JointFold(adapter=f"adapters/{name}", tasks=[name]) for name in ("sums", "spelling")]
    manifest = replace(manifest, joint_folds=folds)
    manifest.write()
    return manifest


def test_a_twin_is_drawn_from_the_same_generator_or_worded_alike(zoo):
    found = {one.task: one for one in twins.neighbours(zoo)}
    assert found["words"].same_generator == ["spelling"]
    assert found["additions"].same_generator == []
    assert found["additions"].nearest == "sums"
    assert found["additions"].cosine > twins.MAX_COSINE
    other = replace(found["additions"], cosine=twins.MAX_COSINE - 0.01)
    assert len(twins.twins([*found.values(), other])) == 2
    assert twins.twins([other]) == []


def test_the_full_run_has_enough_tasks_and_none_of_a_held_out_generator_to_train_on():
    content = yaml.safe_load((ROOT / "results/configs/full/collect.yaml").read_text(encoding="utf-8"))
    kinds: dict[bool, list[dict]] = {True: [], False: []}
    for task in content["tasks"]:
        kinds[task.get("held_out", False)].append(task)
    assert len(kinds[False]) >= 60
    assert len(kinds[True]) >= 15
    held_out, trained = (twins.generators([task["source"] for task in kinds[kind]]) for kind in (True, False))
    assert not held_out & trained
    assert len(trained) < len(kinds[False])  # settings vary within a family
    assert all(task["own_adapter"] for task in kinds[True])
    told = " ".join((ROOT / "docs/results.md").read_text(encoding="utf-8").split())
    num_own = sum(task.get("own_adapter", True) for task in kinds[False])
    assert f"collects {len(kinds[False])} short tasks" in told
    assert f"{num_own} of them with adapters, and {len(kinds[True])} held-out ones" in told
    further = len(short_tasks())
    assert f"adds {further} short tasks" in told
    assert f"{FULL.num_held_out_short} of these are held out" in told
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"({len(kinds[False]) + further - FULL.num_held_out_short} training tasks, " in readme
    assert f", {len(kinds[True]) + FULL.num_held_out_short} held-out tasks, " in readme


def test_every_task_of_the_full_run_has_the_samples_that_it_asks_for():
    content = yaml.safe_load((ROOT / "results/configs/full/collect.yaml").read_text(encoding="utf-8"))
    tasks = [CollectTask(**task) for task in content["tasks"]]
    for task, samples in read_all_samples(tasks, seed=content.get("seed", 0)):
        assert not isinstance(samples, str), samples
        assert (len(samples[0]), len(samples[1])) == (task.num_train, task.num_test)


def test_parts_of_the_zoo_hold_each_other_and_name_the_same_files(zoo, tmp_path):
    plan = replace(QUICK, work=tmp_path / "work")
    tasks = work.trained_on(zoo)
    assert {task.name for task in tasks} == {"sums", "spelling"}
    parts = [
        work.Run(plan, "cpu").part_of(zoo, f"part-{num_tasks}", [*zoo.held_out_tasks, *tasks[:num_tasks]])
        for num_tasks in (1, 2)
    ]
    names = [{task.name for task in part.training_tasks} for part in parts]
    assert [len(one) for one in names] == [1, 2]
    assert names[0] < names[1]
    for part in parts:
        read = ZooManifest.read(part.folder)
        assert [task.name for task in read.held_out_tasks] == ["additions", "words"]
        assert (read.joint, read.joint_folds) == (None, [])  # which have seen the tasks that are left out
        for task in read.tasks:
            assert read.samples(task.prompts).read_bytes() == zoo.samples(zoo.task(task.name).prompts).read_bytes()
            assert read.path(task.adapters[0]).samefile(zoo.folder / "adapters" / task.name)
    with_joint = ZooManifest.read(work.Run(plan, "cpu").part_of(parts[1], "with-joint", tasks, joint=zoo).folder)
    assert with_joint.held_out_tasks == []
    assert with_joint.path(with_joint.joint).samefile(zoo.folder / "adapters/sums")
    for fold, original in zip(with_joint.joint_folds, zoo.joint_folds, strict=True):
        assert fold.tasks == original.tasks
        assert with_joint.path(fold.adapter).samefile(zoo.path(original.adapter))


def test_a_zoo_is_collected_again_when_the_samples_of_its_short_tasks_have_changed(zoo, tmp_path, monkeypatch):
    plan = replace(QUICK, work=tmp_path / "work", num_held_out_short=0)
    shutil.copytree(zoo.folder, plan.work / "zoo")
    keys = []

    def key_of(steps: work.Steps, command: str, *, makes: Path, **depends_on: Any) -> None:
        keys.append(steps.key(command, **depends_on))

    def flags(colour: str) -> list[SimpleNamespace]:
        samples = [Example(prompt=f"Which flag has {name}?", response=name) for name in ("Peru", "Cuba")]
        samples.append(Example(prompt="Which flag has Chile?", response=colour))
        return [SimpleNamespace(name="flags", samples=lambda _: samples)]

    monkeypatch.setattr(work.Steps, "run", key_of)
    for response in ("white", "white", "red"):
        monkeypatch.setattr(work, "short_tasks", lambda response=response: flags(response))
        work.Run(plan, "cpu").collect()
    (first, first_all), (_, again_all), (last, last_all) = zip(keys[::2], keys[1::2], strict=True)
    assert first == last
    assert first_all == again_all != last_all


def test_what_runs_side_by_side_may_wait_for_what_was_begun_before():
    stopped = []
    with SideBySide(2, stop=lambda: stopped.append(True)) as side_by_side:
        firsts = [side_by_side.begin(lambda number=number: number) for number in range(3)]
        sums = [side_by_side.begin(lambda one=one: one.result() + 10) for one in firsts]
    assert [one.result() for one in sums] == [10, 11, 12]
    assert not stopped


def test_the_first_that_fails_stops_the_others_and_nothing_more_begins():
    stop, waiting, begun = Event(), [], []

    def fail() -> None:
        raise SystemExit("out of disk")

    def run_all() -> None:
        with SideBySide(2, stop=stop.set) as side_by_side:
            waiting.append(side_by_side.begin(stop.wait, 60))
            side_by_side.begin(fail)
            for number in range(3):
                side_by_side.begin(lambda number=number: begun.append(number) or stop.wait(60))

    with pytest.raises(SystemExit, match="out of disk"):
        run_all()
    assert waiting[0].result()  # stopped, not waited for to its end
    assert len(begun) <= 1


def evaluation(shift: float) -> dict:
    """An evaluation of six held-out tasks and one that was trained on."""
    levels = {"base": 4.0, "ridge": 2.0, "generated": 1.5 + shift, "own": 1.0}

    def scores(task: int) -> dict:
        return {row: {"nll": level + task, "exact_match": 0.1 * (4 - level)} for row, level in levels.items()}

    tasks = [{"task": f"t{task}", "held_out": True, "scores": scores(task)} for task in range(6)]
    return {"tasks": [*tasks, {"task": "seen", "held_out": False, "scores": scores(9)}]}


def test_scores_are_means_over_seeds_then_tasks_and_differences_are_paired():
    scores = summary.scores_by_task([evaluation(-0.25), evaluation(0.25)], held_out=True)
    assert list(scores) == [f"t{task}" for task in range(6)]
    assert scores["t3"]["generated"]["nll"] == pytest.approx(4.5)
    table = summary.group_table(scores)
    assert list(table) == ["base", "ridge", "generated", "own"]
    assert table["generated"]["nll"]["mean"] == pytest.approx(1.5 + 2.5)
    low, high = table["generated"]["nll"]["interval"]
    assert low < 4.0 - 1 < 4.0 + 1 < high  # tasks differ by far
    assert table["generated"]["gap_closed"] == pytest.approx(2.5 / 3)
    differences = summary.compared(scores, "generated")
    assert list(differences) == ["base", "ridge", "own"]
    assert differences["ridge"]["nll"] == {
        "mean": pytest.approx(-0.5),
        "interval": pytest.approx((-0.5, -0.5)),
        "num_better": 6,
    }
    assert differences["own"]["exact_match"]["num_better"] == 0


def test_the_interval_of_a_share_ends_where_shares_end_and_that_of_a_difference_does_not():
    shares = {"base": [0, 0, 0, 0, 0, 0.1], "own": [1, 1, 1, 1, 1, 0.9]}
    scores = {
        f"t{task}": {row: {"nll": 2.0 - share[task], "exact_match": share[task]} for row, share in shares.items()}
        for task in range(6)
    }
    table = summary.group_table(scores)
    assert table["base"]["exact_match"]["interval"][0] == 0
    assert 0 < table["base"]["exact_match"]["interval"][1] < 0.1
    assert table["own"]["exact_match"]["interval"][1] == 1
    assert summary.compared(scores, "own")["base"]["exact_match"]["interval"][1] > 1


def test_few_tasks_have_no_interval():
    scores = summary.scores_by_task([evaluation(0)], held_out=True)
    table = summary.group_table({task: scores[task] for task in ("t0", "t1")})
    assert table["ridge"]["nll"]["interval"] is None


@pytest.fixture
def found() -> dict:
    """Results as a run writes them."""
    scores = summary.scores_by_task([evaluation(0)], held_out=True)
    table = summary.group_table(scores)
    means = {row: {name: table[row][name]["mean"] for name in ("nll", "exact_match")} for row in table}
    start = {"tuned": table["generated"], "tuned from mean": table["base"], "tuned from scratch": table["base"]}
    tuned = dict.fromkeys(start, table["own"])
    return {
        "quick": True,
        "rule": run.RULE,
        "num_training_tasks": 170,
        "num_with_adapters": 70,
        "seeds": [0],
        "joint_steps": 1296,
        "held_out": table,
        "differences": {"generated": summary.compared(scores, "generated")},
        "by_kind": {"of a kind": {"num_tasks": 6, "rows": table, "differences": summary.compared(scores, "generated")}},
        "seen": summary.group_table(summary.scores_by_task([evaluation(0)], held_out=False)),
        "curve": [
            {"num_tasks": number, "num_with_adapters": 5, "joint_steps": 216, "rows": table} for number in (10, 70)
        ],
        "num_tuned_tasks": 6,
        "tuning": [
            {"num_samples": number, "num_steps": steps, "rows": start if steps == 0 else tuned}
            for number, steps in ((0, 0), (4, 2), (4, 16), (8, 2), (8, 16))
        ],
        "by_seed": {"0": {**means, "mean": means["base"]}},
        "per_task": scores,
        "nearest_tasks": [{"task": "<t0>", "nearest": "sums", "cosine": 0.5, "same_generator": []}],
        "seconds": {"collect": 1.5},
        "made_with": "Python",
        "remarks": ["One <part> was measured anew."],
    }


def test_the_page_needs_nothing_but_itself(found, tmp_path):
    picture, html, config = (tmp_path / name for name in ("results.png", "index.html", "collect.yaml"))
    config.write_text("a: <b>\n")
    page.draw(found, picture)
    page.write_page(found, picture, [config], html)
    content = html.read_text(encoding="utf-8")
    assert re.findall(r"(?:src|href)=\"(?!data:)", content) == []
    assert content.index("<img") < content.index("<table")  # a picture first
    assert "4.000 [" in content
    assert "a: &lt;b&gt;" in content
    assert "&lt;t0&gt;" in content
    assert "mean nothing" in content
    assert "<p>One &lt;part&gt; was measured anew.</p>" in content


def test_the_tables_have_the_numbers(found):
    table = page.main_table(found)
    assert re.search(r"\| generated \| 4\.000 \[\d\.\d{3}, \d\.\d{3}\] \| 25\.0 \[25\.0, 25\.0\] \| 83 \|", table)
    assert "a joint adapter of 1,296 steps" in table
    assert table.endswith("|\n\nOne <part> was measured anew.\n")  # the picture has all of it
    further = page.further_tables(found)
    assert "| ridge | -0.500 [-0.500, -0.500] | 6 |" in further
    assert "| 0 | 0 | 4.000 / 25.0 | 6.500 / 0.0 | 6.500 / 0.0 |" in further
    assert "| 4 | 16 | 3.500 / 30.0 |" in further
    assert "| 70, 5 with adapters | 216 |" in further
    assert "The 6 held-out tasks of a kind alone:" in further
    assert re.search(r"\| ridge \| .* \| -0\.500 \[-0\.500, -0\.500\] \| 6 \|", further)
    assert further.endswith("|\n\nOne <part> was measured anew.\n")


def test_a_section_takes_the_place_of_the_one_before(tmp_path):
    text = "before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n"
    written = page.replace_section(text, "new\n", file=tmp_path)
    assert written == "before\n<!-- results -->\n\nnew\n\n<!-- end of results -->\nafter\n"
    assert page.replace_section(written, "new\n", file=tmp_path) == written
    with pytest.raises(SystemExit, match=r"there\.md lacks the marks"):
        page.replace_section("no marks", "new\n", file=tmp_path / "there.md")


def test_readme_and_documentation_say_what_the_results_say(tmp_path):
    names = ("README.md", "docs/results.md")
    (tmp_path / "docs").mkdir()
    for name in names:
        shutil.copyfile(ROOT / name, tmp_path / name)
    run.write_tables(tmp_path)
    for name in names:
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8"), name


def test_the_recorded_results_are_those_of_a_full_run():
    recorded = ROOT / "results/results.json"
    if not recorded.is_file():
        pytest.skip("no run has been recorded")
    found = json.loads(recorded.read_text(encoding="utf-8"))
    assert not found["quick"]
    assert found["num_training_tasks"] >= 60
    assert len(found["per_task"]) >= 15
    assert len(found["seeds"]) >= 3
    assert all(one["cosine"] < twins.MAX_COSINE and not one["same_generator"] for one in found["nearest_tasks"])
    assert all(Path(ROOT / "results" / name).is_file() for name in ("results.png", "index.html"))


def _input_of(prompt: str, task: ShortTask) -> str:
    """Return a prompt without the instruction around it."""
    for instruction in task.instructions:
        before, _, after = instruction.partition("{}")
        if prompt.startswith(before) and prompt.endswith(after):
            return prompt.removeprefix(before).removesuffix(after)
    raise AssertionError(f"{task.name} has no instruction for {prompt!r}")


def test_short_tasks_are_many_and_the_same_at_every_call():
    tasks = short_tasks()
    assert len(tasks) >= 350
    assert len({task.name for task in tasks}) == len(tasks)
    for task in tasks:
        samples = task.samples(60)
        assert len({_input_of(sample.prompt, task) for sample in samples}) > 40  # not instructions only
        assert all(sample.response for sample in samples)
    again = {task.name: task for task in short_tasks()}
    assert all(again[task.name].samples(60) == task.samples(60) for task in tasks)
    known = {task.name: {s.prompt.split()[-1]: s.response for s in task.samples(300)} for task in tasks}
    assert known["short_number_square"]["12"] == "144"
    assert known["short_number_words_es"]["21"] == "veintiuno"
    assert known["short_country_de"]["France"] == "Frankreich"


def test_short_tasks_have_their_inputs_where_an_instruction_has_a_place_for_them():
    ways = {
        "Count: {} (items)": "Count: tea (items)",
        "How many items?": "How many items? tea",
        "{}\nItems:": "tea\nItems:",
    }
    for way, wanted in ways.items():
        (sample,) = ShortTask(name="count", instructions=(way,), pairs=[("tea", "1")]).samples(3)
        assert (sample.prompt, sample.response) == (wanted, "1")


def test_the_further_tasks_that_are_least_like_any_other_are_held_out_and_those_like_a_held_out_one_left_out(zoo):
    further = {
        "adding": [f"What is {a} + {a + 2}?" for a in range(9)],
        "flags": ["Which flag has Peru?", "Which flag has Cuba?"],
        "banners": ["Which flag has Chile?", "Which flag has Ghana?"],
        "music": ["Who composed Fidelio?", "Who composed Carmen?"],
    }
    # Adding is worded like a held-out task of the zoo, and the flags are each other's twins.
    assert twins.held_out_among(zoo, further, 0) == ([], ["flags", "banners", "music"])
    assert twins.held_out_among(zoo, further, 1) == (["music"], ["flags", "banners"])
    held_out, training = twins.held_out_among(zoo, further, 3)
    assert {*further} - {*held_out} < {"flags", "banners"}
    assert training == []
    # As in a run that goes on, where the zoo has the further tasks already.
    known = replace(zoo, tasks=[*zoo.tasks, replace(zoo.task("sums"), name="music")])
    assert twins.held_out_among(known, further, 1) == (["music"], ["flags", "banners"])

"""The card of a trained generator: its head, what it says of training and evaluation, and how it travels."""

import dataclasses
import json

import pytest
import yaml
from loragen_infer import GeneratorBundle, LoraGenerator, LoragenInferError, TrainingTasks
from loragen_infer.hub.model_card import find_evaluation, generator_card

SCORE = {
    "nll": 1.25,
    "nll_interval": [1.0, 1.5],
    "exact_match": 0.5,
    "exact_match_interval": None,
    "accuracy": None,
    "accuracy_interval": None,
    "gap_closed": 0.375,
    "gap_closed_interval": [0.25, 0.5],
    "num_examples": 8,
}
RESULTS = {
    "config": {"model": "/home/ada/secret/place"},
    "tasks": [],
    "groups": [
        {
            "name": "held-out tasks",
            "tasks": ["sums", "capitals"],
            "scores": {"base": {**SCORE, "gap_closed": None}, "generated": SCORE},
        }
    ],
    "verdicts": [{"sentence": "On the 2 held-out tasks, generated − ridge is below zero."}],
    "remarks": ["There is no row own."],
}


@pytest.fixture
def experiment(zoo, tmp_path, encoder, monkeypatch):
    """A folder as fit leaves it, with an evaluation in it."""
    monkeypatch.setattr("loragen_infer.bundle.encoder_match.load_encoder", lambda *args, **options: encoder)
    folder = tmp_path / "experiment"
    zoo.bundle.save(folder / "results" / "final_model" / "generator.safetensors")
    (folder / "results" / "evaluation.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    (folder / "results" / "evaluation.png").write_bytes(b"picture")
    return folder


def head_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_head_is_what_a_hub_reads(zoo):
    card = generator_card(zoo.bundle.with_base_model("lab/model"), name="ada/sums")
    head = head_of(card)
    assert head["base_model"] == "lab/model"
    assert head["library_name"] == "loragen-infer"
    assert head["loragen_generator"] == zoo.bundle.with_base_model("lab/model").fingerprint
    assert "- encoder: `all-MiniLM-L6-v2`" in card
    assert "r 2, lora_alpha 8, on `q_proj`, `v_proj`: 448 parameters" in card
    assert "LoraGenerator.from_pretrained('ada/sums')" in card
    # A folder is no name that a hub would take.
    assert "base_model" not in head_of(generator_card(zoo.bundle, name="ada/sums"))
    assert "base_model" not in head_of(generator_card(zoo.bundle.with_base_model(None), name="ada/sums"))


def test_the_tasks_are_counted_and_named(zoo):
    def card(*names):
        tasks = None if not names else TrainingTasks(names=names)
        return generator_card(dataclasses.replace(zoo.bundle, training_tasks=tasks), name="x")

    assert "- trained on: 2 adapters of tasks whose names are not known" in card()
    assert "- trained on: 2 tasks (2 adapters): `sums`, `capitals`\n" in card("sums", "capitals")
    many = card(*(f"task{number}" for number in range(250)))
    assert "- trained on: 250 tasks (2 adapters): `task0`, " in many
    assert "`task99` and 150 more\n" in many


def test_an_encoder_of_another_kind_is_described(zoo):
    bundle = dataclasses.replace(
        zoo.bundle, text_encoder_revision="c0ffee", condition="both:3", condition_model_name="lab/model"
    )
    assert "`all-MiniLM-L6-v2` at revision `c0ffee` and states of `lab/model` (`both:3`)" in generator_card(
        bundle, name="x"
    )


def test_results_and_picture_of_the_experiment_are_on_the_card_and_travel(experiment, tmp_path):
    folder = LoraGenerator.from_pretrained(experiment).save_pretrained(tmp_path / "saved")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Mean over 2 held-out tasks (`sums`, `capitals`):" in card
    assert "| row | NLL per answer token | exact match, % | gap closed, % |" in card
    assert "| generated | 1.250 [1.000, 1.500] | 50 | 38 [25, 50] |" in card
    assert "| base | 1.250 [1.000, 1.500] | 50 | – |" in card
    assert "generated − ridge is below zero" in card
    assert "](evaluation.png)" in card
    assert (folder / "evaluation.png").read_bytes() == b"picture"
    assert "secret" not in (folder / "evaluation.json").read_text(encoding="utf-8") + card
    again = LoraGenerator.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert (again / "README.md").read_text(encoding="utf-8") == card
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in folder.iterdir())


def test_a_card_that_is_there_stays(experiment, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "README.md").write_text("my own words")
    LoraGenerator.from_pretrained(experiment).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").read_text() == "my own words"
    assert GeneratorBundle.load(tmp_path / "saved").stats.count == 2


def test_results_are_looked_for_in_the_experiment_only(experiment, tmp_path):
    file = experiment / "results" / "final_model" / "generator.safetensors"
    assert find_evaluation(file) == experiment / "results"
    (experiment / "results" / "evaluation.json").rename(experiment / "evaluation.json")
    assert find_evaluation(file) == experiment
    (experiment / "results" / "final_model").rename(experiment / "results" / "model")
    assert find_evaluation(experiment / "results" / "model" / file.name) is None


@pytest.mark.parametrize("content", ["no JSON", "{}", "[]", json.dumps({**RESULTS, "groups": [{}]})])
def test_results_that_are_none_leave_the_card_without(experiment, tmp_path, content, caplog):
    (experiment / "results" / "evaluation.json").write_text(content)
    folder = LoraGenerator.from_pretrained(experiment).save_pretrained(tmp_path / "saved")
    assert "## Evaluation" not in (folder / "README.md").read_text(encoding="utf-8")
    assert not (folder / "evaluation.png").exists()
    assert "holds no results of an evaluation" in caplog.text


def test_results_may_be_named(generator, experiment, tmp_path):
    folder = generator.save_pretrained(tmp_path / "saved", evaluation=experiment / "results")
    assert "## Evaluation" in (folder / "README.md").read_text(encoding="utf-8")
    with pytest.raises(LoragenInferError, match=r"experiment holds no evaluation.json; give the output_dir of"):
        generator.save_pretrained(tmp_path / "other", evaluation=experiment)
    assert not (tmp_path / "other").exists()

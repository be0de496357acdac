"""What the demo page shows, without the page: norms, nearest tasks, answers, and what is refused."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lora_tokenizer import read_adapter
from loragen_infer import LoraGenerator, LoragenInferError, adapter_attached
from loragen_infer.bundle import TrainingTasks
from loragen_infer.cli.main import main
from loragen_infer.demo import run
from loragen_infer.demo.config import DemoConfig
from loragen_infer.demo.language_model import LanguageModel
from loragen_infer.demo.loading import Loading
from loragen_infer.demo.nearest import TaskMap
from loragen_infer.demo.norms import delta_norms, draw_norms
from loragen_infer.demo.workshop import Maker, Workshop, prompts_of
from loragen_infer.evaluation.task_means import TASK_MEANS_NAME, TaskMeansWriter
from loragen_infer.generator import scale_adapter
from loragen_infer.models.base_model import load_base_model
from loragen_infer.samples import prompt_hash
from loragen_infer.store import AdapterStore
from PIL import Image

TASKS = {"sums": ["What is 2 + 3?", "Add 4 and 5."], "French": ["Translate to French: dog", "French for bread?"]}


@pytest.fixture(scope="module")
def shown(zoo, encoder, tmp_path_factory) -> SimpleNamespace:
    """A workshop over a bundle that knows two training tasks, and what is in it."""
    root = tmp_path_factory.mktemp("workshop")
    bundle, layout = zoo.bundle, zoo.bundle.layout
    with TaskMeansWriter(root / TASK_MEANS_NAME, num_tokens=layout.num_tokens, token_dim=layout.token_dim) as writer:
        for name, prompts in TASKS.items():
            writer.add(name, encoder.encode(prompts), bundle.stats.mean)
    hashes = {name: frozenset(map(prompt_hash, prompts)) for name, prompts in TASKS.items()}
    known = TrainingTasks(names=tuple(TASKS), prompt_hashes=hashes)
    bundle = replace(bundle, training_tasks=known)
    bundle.save(root / "generator.safetensors")
    generator = LoraGenerator(bundle, encoder)
    language_model = LanguageModel(str(zoo.model))
    workshop = Workshop(
        bundle,
        maker=Loading(
            "The encoder", lambda: Maker(generator=generator, store=AdapterStore(root / "adapters", generator))
        ),
        tasks=TaskMap(bundle, root / "generator.safetensors"),
        language_model=language_model,
        workspace=root,
    )
    for load in workshop.loads:
        load()
    return SimpleNamespace(workshop=workshop, root=root, generator=generator, language_model=language_model)


def test_the_norms_are_those_of_the_whole_matrices(zoo):
    adapter = read_adapter(zoo.adapters[0])
    found = delta_norms(adapter)
    assert found.modules == ("self_attn.q_proj", "self_attn.v_proj")
    assert found.layers == (0, 1)
    for row, module in enumerate(found.modules):
        for column, layer in enumerate(found.layers):
            wanted = adapter.delta_weight(f"model.layers.{layer}.{module}").norm()
            torch.testing.assert_close(found.norms_ML[row, column], wanted)
    twice = delta_norms(scale_adapter(adapter, -2.0))
    torch.testing.assert_close(twice.norms_ML, 2 * found.norms_ML)


def test_what_a_layer_lacks_stays_empty_in_the_picture(make, llama, tmp_path):
    folder = make.adapter(llama, tmp_path / "adapter", target_modules=r".*layers\.1\.mlp\.up_proj|lm_head|.*0.*q_proj")
    found = delta_norms(read_adapter(folder))
    assert found.layers == (0, 1, None)
    assert set(found.modules) == {"lm_head", "self_attn.q_proj", "mlp.up_proj"}
    assert found.norms_ML.isfinite().sum() == 3
    with Image.open(draw_norms(found, tmp_path / "norms.png")) as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors(maxcolors=1 << 16)) > 10


def test_an_adapter_without_effect_can_be_drawn(zoo, tmp_path):
    found = delta_norms(scale_adapter(read_adapter(zoo.adapters[0]), 0.0))
    assert found.norms_ML.count_nonzero() == 0
    assert draw_norms(found, tmp_path / "norms.png").stat().st_size > 1000


def test_the_nearest_tasks_come_first_and_what_was_trained_on_is_said(shown, encoder):
    near = shown.workshop.tasks.nearest(["French word for house?", "French for bread?"], encoder)
    assert [name for name, _ in near.rows] == ["French", "sums"]
    means = [
        encoder.encode(prompts).mean(dim=0)
        for prompts in (["French word for house?", "French for bread?"], TASKS["French"])
    ]
    assert near.rows[0][1] == pytest.approx(torch.cosine_similarity(*means, dim=0).item(), abs=1e-5)
    assert near.note == "1 prompt of these the generator saw in training."
    assert shown.workshop.tasks.nearest(["French word for house?"], encoder).note == ""


def test_without_means_nothing_is_compared(zoo, encoder):
    tasks = TaskMap(zoo.bundle, zoo.file)
    assert tasks.num_tasks is None
    near = tasks.nearest(["Add 1 and 2."], encoder)
    assert near.rows == ()
    assert "nothing is compared" in near.note


def test_the_same_prompts_are_the_same_adapter_and_the_strength_scales_it(shown):
    one, again, half = (shown.workshop.make(("Add 1 and 2.",), strength) for strength in (1, 1.0, 0.5))
    assert one.id == again.id != half.id
    assert half.total_norm == pytest.approx(one.total_norm / 2, rel=1e-5)
    assert one.num_parameters == shown.generator.bundle.layout.num_values


def test_what_was_made_for_the_page_is_not_kept_for_ever(shown):
    old, other = shown.root / f"{'0' * 16}.zip", shown.root / "generator.safetensors"
    old.touch()
    for path in (old, other):
        os.utime(path, (1, 1))
    made = shown.workshop.make(("Add 1 and 2.",), 1)
    assert not old.exists()
    assert all(path.exists() for path in (other, made.archive, made.picture))


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 2.5, -3, None, "1"])
def test_a_strength_out_of_range_is_refused(shown, strength):
    with pytest.raises(LoragenInferError, match="The strength is"):
        shown.workshop.make(("Add 1 and 2.",), strength)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no prompt"),
        (" \n\t\n", "no prompt"),
        ("a\n" * 1001, "1,001 prompts"),
        ("a" * 200_001, "200,001 characters"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(text, reason):
    with pytest.raises(LoragenInferError, match=reason):
        prompts_of(text)


def test_the_answers_are_those_of_the_model_alone_and_with_the_adapter(shown, zoo):
    prompts = ("Add 1 and 2.", "What is 5 + 6?")
    base, adapted = shown.workshop.ask("say ab", prompts, 1.0)
    model, tokenizer = load_base_model(str(zoo.model))
    inputs = tokenizer("[user]say ab[assistant]", return_tensors="pt")

    def said(asked) -> str:
        output = asked.generate(**inputs, max_new_tokens=64, do_sample=False, pad_token_id=2)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    assert base == said(model)
    with adapter_attached(model, shown.generator.generate(prompts)) as with_adapter:
        assert adapted == said(with_adapter)
    assert base != adapted
    assert shown.workshop.ask("say ab", prompts, 0.0) == (base, base)
    assert shown.language_model.status == f"{zoo.model} is ready."


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (" ", "no question"),
        ("a" * 20_001, "longer than 20,000 characters"),
        ("a" * 500, "517 tokens, and 192 are read"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(shown, question, reason):
    with pytest.raises(LoragenInferError, match=reason):
        shown.workshop.ask(question, ("Add 1 and 2.",), 1.0)


@pytest.mark.parametrize(("name", "reason"), [(None, "--base-model"), ("./nowhere", "'./nowhere' does not exist")])
def test_a_language_model_that_is_not_there_is_said_of_each_question(zoo, name, reason):
    language_model = LanguageModel(name)
    assert language_model.status == f"{name or 'The language model'} is being loaded…"
    language_model.load()
    with pytest.raises(LoragenInferError, match=reason):
        language_model.answers("say ab", read_adapter(zoo.adapters[0]))
    assert reason in language_model.status


def test_what_is_given_up_is_waited_for_by_nobody():
    def interrupted() -> int:
        raise KeyboardInterrupt

    loading = Loading("The encoder", interrupted)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(loading.result)
        with pytest.raises(KeyboardInterrupt):
            loading.load()
        loading.give_up()
        with pytest.raises(LoragenInferError, match="ended before The encoder was loaded"):
            waiting.result(10)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"text_encoder_name": "./nowhere"}, "text encoder './nowhere' does not exist"), ({}, "cannot be written")],
)
def test_what_can_be_seen_at_once_is_said_before_the_page(zoo, tmp_path, capsys, change, reason):
    replace(zoo.bundle, **change).save(tmp_path / "generator.safetensors")
    (tmp_path / "taken").write_text("")
    words = ["demo", "--model", str(tmp_path), "--store", str(tmp_path / "taken"), "--port", "7999"]
    assert main(words) == 1
    found = capsys.readouterr().err
    assert reason in found
    assert "The page is at" not in found


@pytest.mark.parametrize(("said", "wanted"), [("on", True), ("off", False), ("true", True), ("false", False)])
def test_a_public_address_is_said_in_a_file_as_on_the_command_line(tmp_path, monkeypatch, said, wanted):
    seen = []
    monkeypatch.setattr(run, "run_demo", seen.append)
    assert main(["demo", "--model", "m", "--share", said]) == 0
    for written in (said, repr(said)):
        (tmp_path / "demo.yaml").write_text(f"model: m\nshare: {written}\n")
        assert main(["demo", "--config", str(tmp_path / "demo.yaml")]) == 0
    assert [config.share for config in seen] == [wanted] * 3
    with pytest.raises(LoragenInferError, match=rf"share is '{said}', where True or False belongs"):
        DemoConfig(model="m", share=said)


def test_what_is_missing_or_taken_is_one_sentence(zoo, monkeypatch, capsys):
    words = ["demo", "--model", str(zoo.experiment)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([*words, "--port", str(taken.getsockname()[1]), "--share", "off"]) == 1
    assert "choose another --port" in capsys.readouterr().err
    assert main([*words, "--port", "0"]) == 2
    assert "--port is 0" in capsys.readouterr().err
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None if name == "gradio" else True)
    assert main(words) == 1
    assert 'pip install "loragen-infer[demo]"' in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError(28, "No space left on device")])
def test_what_the_machine_lacks_is_a_sentence_on_the_page(error):
    gr = pytest.importorskip("gradio")
    from loragen_infer.demo import page

    def fail():
        raise error

    with pytest.raises(
        gr.Error, match=r"Not now: .*(not enough memory for it|No space left on device); give shorter texts"
    ):
        page._told(fail)()
    with pytest.raises(KeyError):  # a defect
        page._told(lambda: {}["x"])()

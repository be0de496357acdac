"""The command compare: the base model and adapters on it answer the same prompts, alone and together alike."""

import dataclasses
import json

import pytest
import torch
from loragen_infer import LoragenInferError, load_base_model
from loragen_infer.answering import Questions
from loragen_infer.cli.main import main
from loragen_infer.comparing import compare, format_comparison, read_prompts
from loragen_infer.likelihood import response_nll
from loragen_infer.samples import Example, tokenize_example
from peft import PeftModel

EXAMPLES = [
    Example(prompt="say ab", response="ab"),
    Example(prompt="a longer prompt to be padded", response=""),
    Example(prompt="x", response="yz"),
]


def rename_base(folder, name):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(name)}))
    return folder


@pytest.fixture(scope="module")
def comparison(zoo):
    return compare(zoo.adapters, EXAMPLES, max_new_tokens=6)


def test_every_model_answers_as_it_does_alone(zoo, comparison):
    assert comparison.base_model == str(zoo.model)
    for name, folder in (("base", None), *((folder.name, folder) for folder in zoo.adapters)):
        model, tokenizer = load_base_model(str(zoo.model))
        model = model if folder is None else PeftModel.from_pretrained(model, str(folder)).eval()
        for example, prompt in zip(EXAMPLES, comparison.prompts, strict=True):
            messages = [{"role": "user", "content": example.prompt}]
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            found = model.generate(**inputs, do_sample=False, max_new_tokens=6)
            new = found[0, inputs["input_ids"].shape[1] :]
            answer = prompt.answers[name]
            assert answer.text == tokenizer.decode(new, skip_special_tokens=True).strip()
            assert answer.is_complete == (int(new[-1]) == tokenizer.eos_token_id)
            if not example.response:
                assert answer.nll is None
                continue
            item = tokenize_example(tokenizer, example)
            with torch.no_grad():
                expected = response_nll(model, [item], padding=0)[0] / len(item.response_ids)
            assert answer.nll == pytest.approx(float(expected), abs=1e-5)


def test_a_models_own_settings_of_generation_change_no_answer(zoo):
    """Some models ship a penalty on the words of the prompt, which would hold without sampling too."""
    model, tokenizer = load_base_model(str(zoo.model))
    asked = Questions(tokenizer, [example.prompt for example in EXAMPLES], max_new_tokens=6)
    plain = list(asked.answers_of(model))
    own = {"repetition_penalty": 9.0, "num_beams": 3, "no_repeat_ngram_size": 1, "min_length": 99}
    own |= {"encoder_no_repeat_ngram_size": 1, "stop_strings": ["a"], "return_dict_in_generate": True}
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    assert list(asked.answers_of(model)) == plain


def test_the_answers_differ_and_the_means_are_of_prompts_with_responses(comparison):
    assert list(comparison.prompts[0].answers) == ["base", "adapter1", "adapter2"]
    assert [prompt.response for prompt in comparison.prompts] == ["ab", None, "yz"]
    assert len({answer.text for answer in comparison.prompts[1].answers.values()}) > 1
    first, last = (comparison.prompts[place].answers["adapter1"].nll for place in (0, 2))
    assert comparison.mean_nll()["adapter1"] == pytest.approx((first + last) / 2)


def widest(text: str) -> int:
    """Of all lines but one, which is a heading of fixed words."""
    (heading,) = (line for line in text.splitlines() if line.startswith("Mean NLL"))
    return max(len(line) for line in text.splitlines() if line != heading)


@pytest.mark.parametrize("long", ["several words " * 30, "x" * 400, "line\n" + "word " * 60])
def test_long_texts_fill_the_width_of_the_table_and_no_more(comparison, long):
    first = comparison.prompts[0]
    answers = {name: dataclasses.replace(answer, text=long) for name, answer in first.answers.items()}
    filled = dataclasses.replace(first, prompt=long, response=long, answers=answers)
    for width in (50, 60, 100):
        text = format_comparison(dataclasses.replace(comparison, prompts=[filled]), width=width)
        assert width - len("several ") <= widest(text) <= width
        assert len(text.splitlines()) > 15


def test_the_table_fits_its_width_and_names_everything(comparison):
    text = format_comparison(comparison, width=60)
    assert widest(text) <= 60
    assert text.startswith("1. say ab\n  expected")
    for name, mean in comparison.mean_nll().items():
        assert f"  {name:<8}  {mean:6.3f}" in text
    assert text.count("adapter2") == 4


def test_the_command_prints_a_table_or_json(zoo, make, tmp_path, capsys):
    rows = [{"prompt": "say ab", "response": "ab"}, {"question": "x"}]
    words = ["compare", *map(str, zoo.adapters), "--prompts", str(make.rows(tmp_path / "p.jsonl", rows))]
    words += ["--max-new-tokens", "3"]
    assert main(words) == 0
    assert "2. x\n" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["base_model"] == str(zoo.model)
    assert content["prompts"][1]["answers"]["adapter2"]["nll"] is None
    assert content["mean_nll"].keys() == {"base", "adapter1", "adapter2"}


def test_a_text_file_has_a_prompt_per_line(zoo, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("one\n\n two \n")
    assert [example.prompt for example in read_prompts(tmp_path / "p.txt")] == ["one", "two"]
    assert main(["compare", str(zoo.adapters[0]), "--prompts", str(tmp_path / "p.txt"), "--max-new-tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "Mean NLL" not in out
    assert "adapter1" in out


def test_adapters_of_one_name_are_told_apart_by_their_places(zoo, make, tmp_path):
    other = rename_base(make.adapter(make.llama(seed=1), tmp_path / "adapter1", seed=5), zoo.model)
    found = compare([zoo.adapters[0], other], EXAMPLES[:1], max_new_tokens=1)
    assert list(found.prompts[0].answers) == [
        "base",
        *(f"{path.parent.name}/adapter1" for path in (zoo.adapters[0], other)),
    ]
    with pytest.raises(LoragenInferError, match="named twice"):
        compare([other, other], EXAMPLES[:1])


def test_one_base_model_may_have_several_names(zoo, make, tmp_path):
    other = make.adapter(make.llama(seed=1), tmp_path / "other", seed=5)
    rename_base(other, f"{zoo.model.parent}/../{zoo.model.parent.name}/{zoo.model.name}")
    assert list(compare([zoo.adapters[0], other], EXAMPLES[:1], max_new_tokens=1).prompts[0].answers)[2] == "other"


def test_what_cannot_be_compared_is_one_sentence(zoo, make, tmp_path, capsys):
    def zoo_twin():
        model = make.llama(seed=1)
        model.model.layers = model.model.layers[:1]  # so that the adapter is of one layer
        model.config.num_hidden_layers = 1
        return model

    (tmp_path / "p.txt").write_text("one\n")
    (tmp_path / "empty.txt").write_text("\n")
    stranger = rename_base(make.adapter(make.llama(seed=1), tmp_path / "stranger"), "lab/other")
    wrong = rename_base(make.adapter(zoo_twin(), tmp_path / "wrong"), zoo.model)
    for words, said in (
        ([zoo.adapters[0], "--prompts", tmp_path / "empty.txt"], "empty.txt is empty"),
        ([zoo.adapters[0], "--prompts", tmp_path / "none.txt"], "cannot be read"),
        ([tmp_path / "none", "--prompts", tmp_path / "p.txt"], "none"),
        ([zoo.adapters[0], stranger, "--prompts", tmp_path / "p.txt"], "do not name one base model (adapter1: "),
        ([wrong, "--prompts", tmp_path / "p.txt"], "wrong: The adapter does not fit the model"),
        ([wrong, "--prompts", tmp_path / "p.txt", "--max-new-tokens", 900], "may have"),
        ([wrong, "--prompts", tmp_path / "p.txt", "--max-new-tokens", 0], "max_new_tokens is 0"),
    ):
        assert main(["compare", *map(str, words)]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line
    for paths, examples, said in (
        ([tmp_path / "none"], EXAMPLES, "none does not exist"),
        ([], EXAMPLES, "no adapter to compare"),
        (zoo.adapters[:1], [], "no prompt to compare"),
    ):
        with pytest.raises(LoragenInferError, match=said):
            compare(paths, examples)
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(zoo.adapters[0])])
    assert "--prompts must be given" in capsys.readouterr().err

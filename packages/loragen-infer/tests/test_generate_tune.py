"""The option --tune of generate: the adapter goes on from solved samples, and says so."""

import pytest
from lora_tokenizer import read_adapter
from loragen_infer import LoragenInferError
from loragen_infer.generation.config import GenerateConfig
from loragen_infer.generation.run import run_generate


@pytest.fixture
def run(zoo, generator, monkeypatch):
    """``run_generate`` with the options given, on a generator that is loaded once for all tests."""
    monkeypatch.setattr("loragen_infer.generation.run.load_generator", lambda config: generator)
    return lambda **options: run_generate(GenerateConfig(model=str(zoo.experiment), **options))


def test_a_generated_adapter_is_tuned_on_samples(run, generator, make, tmp_path):
    samples = make.rows(
        tmp_path / "s.jsonl", [{"prompt": "say a", "response": "b"}, {"prompt": "say c", "answer": "d"}]
    )
    options = {
        "prompts": ("say it",),
        "tune": str(samples),
        "tune_steps": 3,
        "tune_folds": 0,
        "output": str(tmp_path / "a"),
    }
    assert run(**options).num_made == 1
    assert "then it was tuned on 2 samples (3 steps)" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    found = dict(read_adapter(tmp_path / "a").tensors)
    generated = generator.generate(["say it"]).tensors
    assert any((tensor - generated[name]).abs().max() > 1e-4 for name, tensor in found.items())
    assert run(**options).num_kept == 1
    # Other samples make another adapter.
    make.rows(tmp_path / "s.jsonl", [{"prompt": "say a", "response": "x"}])
    with pytest.raises(LoragenInferError, match="exists already"):
        run(**options)
    make.rows(tmp_path / "s.jsonl", [{"prompt": "say a"}])
    with pytest.raises(LoragenInferError, match="row 1 has the columns prompt, but none of response"):
        run(**options)
    with pytest.raises(LoragenInferError, match="is not a file"):
        run(**{**options, "tune": str(tmp_path / "none.jsonl")})
    with pytest.raises(LoragenInferError, match="add --pool"):
        run(tune=str(samples), prompt_file=str(samples), output=str(tmp_path / "b"))


def test_the_samples_decide_how_many_steps_are_taken(run, make, tmp_path, monkeypatch):
    samples = make.rows(tmp_path / "s.jsonl", [{"prompt": "say", "response": word} for word in "abcd"])
    options = {"prompts": ("say it",), "tune": str(samples), "output": str(tmp_path / "a")}
    monkeypatch.setattr("loragen_infer.adapters.tuning._best_number", lambda *inputs: inputs[-1].num_folds - 2)
    run(**options, tune_folds=4)
    assert "(2 steps)" in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(LoragenInferError, match="exists already"):
        run(**options, tune_folds=2)
    with pytest.raises(LoragenInferError, match=r"--tune-folds is -1, where a number from 0 belongs"):
        run(**options, tune_folds=-1)

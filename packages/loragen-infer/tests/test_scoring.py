"""Scores against the plain way: one example at a time, without padding, and real greedy decoding."""

import copy

import pytest
import torch
from lora_tokenizer import read_adapter
from loragen_infer import AdapterStack, BatchedLora, adapter_attached
from loragen_infer.evaluation.applying import Applier
from loragen_infer.evaluation.examples import TestExample
from loragen_infer.evaluation.scoring import ExampleScores, Scorer, mean_scores
from loragen_infer.samples import tokenize_example

WORDS = ["cat", "a", "elephant", "dog", "zebra", "ox"]
EXAMPLES = [TestExample(prompt=f"Spell {word} backward.", response=word[::-1]) for word in WORDS]
SUMS = [TestExample(prompt=f"{a}+{b}=", response=str(a + b)) for a, b in [(1, 2), (9, 9), (40, 2), (123, 456)]]


def plain_nll(model, tokenizer, examples):
    """Mean negative log-likelihood per answer token, token by token from the probabilities."""
    total, count = 0.0, 0
    for example in examples:
        item = tokenize_example(tokenizer, example)
        with torch.inference_mode():
            logits_SV = model(torch.tensor([item.input_ids])).logits[0].double()
        for position in range(item.num_prompt_tokens, len(item.input_ids)):
            probabilities_V = torch.softmax(logits_SV[position - 1], dim=0)
            total -= torch.log(probabilities_V[item.input_ids[position]]).item()
            count += 1
    return total / count


def decodes_exactly(model, tokenizer, example):
    """Whether greedy decoding of the prompt is the response and then the end token."""
    item = tokenize_example(tokenizer, example)
    prompt_ids = torch.tensor([item.input_ids[: item.num_prompt_tokens]])
    answer = item.input_ids[item.num_prompt_tokens :]
    out = model.generate(
        prompt_ids, attention_mask=torch.ones_like(prompt_ids), max_new_tokens=len(answer), do_sample=False
    )
    return out[0, item.num_prompt_tokens :].tolist() == answer


@pytest.fixture(scope="module")
def half_trained(make, llama):
    """A model that was trained, in the scorer's own format, on some of the examples until it knows some of them."""
    model, tokenizer = copy.deepcopy(llama).train(), make.tokenizer()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    items = [tokenize_example(tokenizer, example) for example in EXAMPLES[:3]]
    # Padded on the right, where a causal model needs no mask.
    width = max(len(item.input_ids) for item in items)
    input_ids = torch.tensor([item.input_ids + [2] * (width - len(item.input_ids)) for item in items])
    masked = [[-100] * item.num_prompt_tokens + item.response_ids for item in items]
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in masked])
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize("tokens_per_pass", [1, 80, 160, 4000])
def test_nll_equals_the_plain_computation(make, llama, template, tokens_per_pass):
    tokenizer = make.tokenizer(template=template)
    examples = EXAMPLES + SUMS
    score = Scorer(tokenizer, examples, tokens_per_pass=tokens_per_pass).score(llama)
    assert score.nll == pytest.approx(plain_nll(llama, tokenizer, examples), rel=1e-5)
    assert len(score.exact) == len(examples)


@pytest.mark.parametrize("variant", [{"eos": False}, {"pad": False}])
def test_tokenizers_without_an_end_or_a_padding_token(make, llama, variant):
    tokenizer = make.tokenizer(**variant)
    score = Scorer(tokenizer, EXAMPLES, tokens_per_pass=160).score(llama)
    assert score.nll == pytest.approx(plain_nll(llama, tokenizer, EXAMPLES), rel=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_does_not_matter_to_either_attention(make, llama, attention):
    model, tokenizer = copy.deepcopy(llama), make.tokenizer()
    model.set_attn_implementation(attention)
    one_by_one = [Scorer(tokenizer, [example], tokens_per_pass=40).score(model).nll for example in EXAMPLES]
    lengths = [len(example.response) + 1 for example in EXAMPLES]
    expected = sum(nll * length for nll, length in zip(one_by_one, lengths, strict=True)) / sum(lengths)
    assert Scorer(tokenizer, EXAMPLES, tokens_per_pass=240).score(model).nll == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tokens_per_pass", [1, 160])
def test_exact_match_is_what_greedy_decoding_does(make, half_trained, tokens_per_pass):
    tokenizer = make.tokenizer()
    decoded = [decodes_exactly(half_trained, tokenizer, example) for example in EXAMPLES]
    assert 0 < sum(decoded) < len(decoded), "the test needs a model that knows some answers and not others"
    for example, is_exact in zip(EXAMPLES, decoded, strict=True):
        assert Scorer(tokenizer, [example], tokens_per_pass=40).score(half_trained).exact == (is_exact,)
    assert list(Scorer(tokenizer, EXAMPLES, tokens_per_pass=tokens_per_pass).score(half_trained).exact) == decoded


def test_one_wrong_character_or_a_missing_end_is_no_match(make, half_trained):
    tokenizer = make.tokenizer()
    known = next(example for example in EXAMPLES if decodes_exactly(half_trained, tokenizer, example))
    for response in (known.response[:-1] + "!", known.response + "x", known.response[:-1] or "?"):
        changed = TestExample(prompt=known.prompt, response=response)
        assert Scorer(tokenizer, [changed], tokens_per_pass=40).score(half_trained).exact == (False,)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tokens_per_pass", [1, 80, 1000])
def test_a_common_beginning_is_read_once_and_changes_nothing(make, llama, attention, tokens_per_pass):
    model, tokenizer = copy.deepcopy(llama), make.tokenizer(template=True)
    model.set_attn_implementation(attention)
    shots = [
        TestExample(prompt="Spell rat backward.", response="tar"),
        TestExample(prompt="Spell nib backward.", response="bin"),
    ]
    items = [tokenize_example(tokenizer, example, shots=shots) for example in EXAMPLES]
    expected = []
    for item in items:
        with torch.inference_mode():
            logits_SV = model(torch.tensor([item.input_ids])).logits[0]
        answer = torch.tensor(item.input_ids[item.num_prompt_tokens :])
        predicted_SV = logits_SV[item.num_prompt_tokens - 1 : -1]
        expected.append(torch.nn.functional.cross_entropy(predicted_SV, answer, reduction="sum").item())
    read = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append((args or [kwargs["input_ids"]])[0].numel()), with_kwargs=True
    )
    scores = Scorer(tokenizer, EXAMPLES, tokens_per_pass=tokens_per_pass, shots=shots).score(model)
    hook.remove()
    assert list(scores.answer_nll) == pytest.approx(expected, rel=1e-4)
    # Far fewer tokens than there are: the shots are read once.
    assert sum(read) < 0.6 * sum(len(item.input_ids) for item in items)


def test_prompts_that_share_nothing_and_one_prompt_alone(make, llama):
    tokenizer = make.tokenizer()
    apart = [TestExample(prompt="a b", response="c"), TestExample(prompt="x y", response="z")]
    for examples in (apart, apart[:1], [apart[0], apart[0]]):
        score = Scorer(tokenizer, examples, tokens_per_pass=80).score(llama)
        assert score.nll == pytest.approx(plain_nll(llama, tokenizer, examples), rel=1e-5)


def test_a_model_with_sliding_windows_is_read_from_the_start(make):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        initializer_range=0.2,
        eos_token_id=1,
        pad_token_id=2,
        bos_token_id=None,
    )
    model, tokenizer = MistralForCausalLM(config).eval(), make.tokenizer()
    score = Scorer(tokenizer, EXAMPLES, tokens_per_pass=120).score(model)
    assert score.nll == pytest.approx(plain_nll(model, tokenizer, EXAMPLES), rel=1e-5)


def test_a_scorer_scores_again_the_same(make, llama):
    scorer = Scorer(make.tokenizer(), EXAMPLES, tokens_per_pass=80)
    assert scorer.score(llama) == scorer.score(llama)


@pytest.mark.parametrize("tokens_per_pass", [1, 150, 5000])
@pytest.mark.parametrize("template", [False, True])
def test_adapters_together_score_what_each_does_alone(make, tmp_path, tokens_per_pass, template):
    """With prompts of two wordings and one that is like no other, choices, and several ranks."""
    model, tokenizer = make.llama(), make.tokenizer(template=template)
    folders = [make.adapter(model, tmp_path / str(r), seed=r, r=r, lora_alpha=12) for r in (1, 2, 4)]
    adapters = [read_adapter(folder) for folder in folders]
    texts = [("Spell {} backward.", word) for word in WORDS] + [("Now say the word {}", word) for word in WORDS[:3]]
    examples = [
        TestExample(prompt=text.format(word), response=word, choices=(word, word[::-1] + "!", "no"))
        for text, word in [*texts, ("{}?", "elephantine")]
    ]
    scorer = Scorer(tokenizer, examples, tokens_per_pass=tokens_per_pass)
    assert scorer.num_together >= 1
    batched = BatchedLora(model, adapters[0].modules)
    found = scorer.score_adapters(model, batched, AdapterStack.of(adapters))
    batched.remove()
    for adapter, together in zip(adapters, found, strict=True):
        with adapter_attached(model, adapter) as adapted:
            alone = Scorer(tokenizer, examples, tokens_per_pass=40).score(adapted)
            assert together.nll == pytest.approx(plain_nll(adapted, tokenizer, examples), rel=1e-5)
        assert together.answer_nll == pytest.approx(alone.answer_nll, rel=1e-4, abs=1e-4)
        assert (together.exact, together.correct) == (alone.exact, alone.correct)
    assert len({scores.nll for scores in found}) == 3


def test_adapters_that_cannot_be_applied_in_a_batch_are_attached_alone(make, tmp_path):
    model, tokenizer = make.llama(), make.tokenizer()
    options = [{}, {"use_dora": True}, {"target_modules": ["k_proj"]}, {"lora_bias": True}, {}]
    folders = [
        make.adapter(model, tmp_path / str(seed), seed=seed, **of_adapter) for seed, of_adapter in enumerate(options)
    ]
    adapters = [read_adapter(folder) for folder in folders]
    before = {name: id(module) for name, module in model.named_modules()}
    scorer, applier = Scorer(tokenizer, EXAMPLES, tokens_per_pass=500), Applier(model)
    for adapter in adapters:
        applier.check(adapter)
    found = applier.score(scorer, adapters)
    applier.remove()
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert all(not module._forward_hooks for module in model.modules())
    for adapter, scores in zip(adapters, found, strict=True):
        with adapter_attached(model, adapter) as adapted:
            assert scores.nll == pytest.approx(plain_nll(adapted, tokenizer, EXAMPLES), rel=1e-5)


def test_the_mean_of_scores_is_taken_example_by_example():
    first = ExampleScores(answer_nll=(1.0, 4.0), num_tokens=(1, 2), exact=(True, False), correct=(True, True))
    second = ExampleScores(answer_nll=(3.0, 4.0), num_tokens=(1, 2), exact=(False, False), correct=(False, True))
    expected = ExampleScores(answer_nll=(2.0, 4.0), num_tokens=(1, 2), exact=(0.5, 0.0), correct=(0.5, 1.0))
    assert mean_scores([first, second]) == expected
    assert mean_scores([first]) == first

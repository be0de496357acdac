"""One adapter's training: the loss is that of the response tokens, and the batches are the samples."""

import pytest
import torch
from loragen_infer import LoragenInferError
from loragen_infer.models.base_model import load_base_model
from loragen_infer.samples import Example, tokenize_example
from loragen_train.configs.collect import CollectConfig, CollectTask, LoraTraining
from loragen_train.zoo.collect import collect
from loragen_train.zoo.train_lora import train_lora
from peft import LoraConfig, get_peft_model

# Of different lengths on both sides, so that a mean over samples is another number than a mean over tokens.
EXAMPLES = [
    Example(prompt="What is 1 + 1?", response="2"),
    Example(prompt="Say something long.", response="The quick brown fox jumps."),
    Example(prompt="Hi", response="Hello"),
]


@pytest.fixture
def model_and_tokenizer(tiny_lm):
    model, tokenizer = load_base_model(str(tiny_lm))
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])), tokenizer


def settings(**changes: object) -> LoraTraining:
    values = {"max_steps": 1, "batch_size": len(EXAMPLES), "save_every": 1, "precision": "fp32", **changes}
    return LoraTraining(**values)


def test_the_loss_is_the_mean_over_response_tokens(model_and_tokenizer, tmp_path):
    model, tokenizer = model_and_tokenizer
    items = [tokenize_example(tokenizer, example) for example in EXAMPLES]
    terms = []
    with torch.inference_mode():
        for item in items:
            logits = model(torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
            positions = range(item.num_prompt_tokens, len(item.input_ids))
            terms += [-logits[position - 1, item.input_ids[position]].item() for position in positions]
    assert len(terms) == sum(len(example.response) + 1 for example in EXAMPLES)

    (logged,) = train_lora("task", settings(), 0, tmp_path, items, model, tokenizer, precision="fp32")["loss"]
    assert logged["step"] == 1
    assert logged["loss"] == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_training_fits_the_responses(model_and_tokenizer, tmp_path):
    model, tokenizer = model_and_tokenizer
    items = [tokenize_example(tokenizer, example) for example in EXAMPLES]
    training = settings(max_steps=30, save_every=10, learning_rate=3e-2)
    trained = train_lora("task", training, 0, tmp_path, items, model, tokenizer, precision="fp32")
    losses = [row["loss"] for row in trained["loss"]]
    assert len(losses) == 3
    assert losses[2] < 0.8 * losses[0]


def test_only_the_adapter_is_trained(model_and_tokenizer, tmp_path):
    model, tokenizer = model_and_tokenizer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    items = [tokenize_example(tokenizer, example) for example in EXAMPLES]
    training = settings(max_steps=3, learning_rate=0.1)
    train_lora("task", training, 0, tmp_path, items, model, tokenizer, precision="fp32")
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_a_sample_over_the_limit_is_named(tiny_lm, make, tmp_path):
    source = make.samples(tmp_path / "task.jsonl", [f"a very long one {number} " * 3 for number in range(3)])
    config = CollectConfig(
        base_model=str(tiny_lm),
        output_dir=str(tmp_path / "zoo"),
        tasks=[CollectTask(name="task", source=str(source), num_train=2, num_test=1)],
        training=settings(max_length=40),
    )
    with pytest.raises(LoragenInferError, match=r"over max_length=40: 'a very long one"):
        collect(config)
    assert not (tmp_path / "zoo" / "adapters" / "task").exists()

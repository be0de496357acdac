"""Several adapters trained at once: as one at a time, as PEFT and transformers would, and on responses only."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from lora_tokenizer import read_adapter
from loragen_infer.adapters import AdapterStack, reading
from loragen_infer.adapters.reading import Batch, num_read_once
from loragen_infer.likelihood import read_tokens
from loragen_infer.models.base_model import load_base_model
from loragen_infer.samples import Example, TokenizedExample, tokenize_example
from loragen_infer.zoo import INITIAL_NAME
from loragen_train.configs.collect import CollectConfig, CollectTask, LoraSettings, LoraTraining
from loragen_train.zoo import frozen as frozen_module
from loragen_train.zoo import train_lora
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.initial import load_frozen
from loragen_train.zoo.items import AdapterTask
from loragen_train.zoo.train_lora import TrainedAdapters, order_of_samples, train_adapters
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

# Of different lengths on both sides, so that a mean over samples is another number than a mean over tokens.
EXAMPLES = {
    "short": [Example(prompt=f"{number}?", response=str(number * 7)) for number in range(11)],
    "mixed": [Example(prompt="Say " + "so " * number, response="fox " * (1 + 3 * number % 8)) for number in range(9)],
    "long": [
        Example(
            prompt=f"Of all the words in the dictionary, which is number {number}?", response="that " * number + "."
        )
        for number in range(10)
    ],
}


@pytest.fixture
def config(tiny_lm, tmp_path) -> CollectConfig:
    training = LoraTraining(
        max_steps=8, batch_size=4, learning_rate=1e-2, save_every=3, keep_last=3, max_length=200, precision="fp32"
    )
    return CollectConfig(
        base_model=str(tiny_lm),
        output_dir=str(tmp_path / "zoo"),
        tasks=[CollectTask(name=name, source="x") for name in EXAMPLES],
        lora=LoraSettings(r=2, lora_alpha=4),
        training=training,
        seed=3,
    )


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture
def train(config, fabric, tmp_path):
    """Train adapters on named examples; settings of the training may be other than those of the config."""
    count = iter(range(100))

    def run(
        examples: dict[str, list[Example]], *, dropout: float = 0.0, seed: int = 3, **changes: object
    ) -> TrainedAdapters:
        changed = replace(
            config,
            lora=replace(config.lora, lora_dropout=dropout),
            training=replace(config.training, **changes),
            seed=seed,
        )
        root = tmp_path / f"run{next(count)}"
        frozen = load_frozen(replace(changed, seed=3), root, fabric)
        tasks = [task_of(name, rows, frozen) for name, rows in examples.items()]
        return train_adapters(
            tasks,
            frozen,
            changed,
            initial=read_adapter(root / INITIAL_NAME),
            num_steps=changed.training.max_steps,
            folder=root / "work",
            fabric=fabric,
        )

    return run


def tokenized(rows: Sequence[Example], frozen: FrozenModel) -> list[TokenizedExample]:
    return [tokenize_example(frozen.tokenizer, row) for row in rows]


def task_of(name: str, rows: Sequence[Example], frozen: FrozenModel) -> AdapterTask:
    return AdapterTask(name=name, folder=Path(name), train=tokenized(rows, frozen), test=[], decided_by={})


def factors(stack: AdapterStack, adapter: int) -> dict[str, torch.Tensor]:
    kinds = (("A", stack.a_Kri), ("B", stack.b_Kor))
    return {f"{kind} of {name}": tensor[adapter] for kind, tensors in kinds for name, tensor in tensors.items()}


def assert_same(one: TrainedAdapters, other: TrainedAdapters, adapter: int, *, atol: float = 2e-5) -> None:
    """All checkpoints and losses of adapter ``adapter`` of ``one`` and of the only one of ``other``."""
    assert list(one.checkpoints) == list(other.checkpoints) == [3, 6, 8]
    for step in one.checkpoints:
        torch.testing.assert_close(
            factors(one.checkpoints[step], adapter), factors(other.checkpoints[step], 0), atol=atol, rtol=1e-4
        )
    mine, yours = ([of_step[place] for of_step in run.losses] for run, place in ((one, adapter), (other, 0)))
    assert mine == pytest.approx(yours, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tokens_per_pass": 700},  # the adapters in two passes or more
        {"tokens_per_pass": 120},  # and the batches of the long ones cut up
        {"tokens_per_pass": 1},  # every sample by itself
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "tokens_per_pass": 120},
    ],
    ids=str,
)
def test_all_at_once_become_what_they_become_one_at_a_time(train, changes):
    together = train(EXAMPLES, **changes)
    for adapter, (name, rows) in enumerate(EXAMPLES.items()):
        alone = train({name: rows})
        assert_same(together, alone, adapter)
        assert together.num_tokens[adapter] == alone.num_tokens[0]
    moved = [factors(together.last, adapter) for adapter in range(2)]
    assert all(not torch.equal(value, moved[1][name]) for name, value in moved[0].items())


def test_the_same_call_gives_the_same_bits_and_another_seed_another_order(train):
    one, again = train(EXAMPLES, dropout=0.2), train(EXAMPLES, dropout=0.2)
    assert one.losses == again.losses
    for step, stack in one.checkpoints.items():
        for adapter in range(len(EXAMPLES)):
            here, there = factors(stack, adapter), factors(again.checkpoints[step], adapter)
            assert all(torch.equal(value, there[name]) for name, value in here.items())
    assert train(EXAMPLES, seed=4).losses != train(EXAMPLES).losses
    assert train(EXAMPLES, dropout=0.2).losses != train(EXAMPLES).losses


class InOrder(Trainer):
    """Sees its samples in the order that they are in."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset or self.train_dataset)


def padded(items: Sequence[TokenizedExample]) -> dict[str, torch.Tensor]:
    """A batch as PEFT's examples make one: padding on the right, and -100 for all that is no response."""
    longest = max(len(item.input_ids) for item in items)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for item in items:
        fill = longest - len(item.input_ids)
        batch["input_ids"].append(item.input_ids + [1] * fill)
        batch["attention_mask"].append([1] * len(item.input_ids) + [0] * fill)
        batch["labels"].append([-100] * item.num_prompt_tokens + item.response_ids + [-100] * fill)
    return {name: torch.tensor(rows) for name, rows in batch.items()}


@pytest.mark.parametrize("learning_rate", [1e-2, 3e-4])
def test_the_weights_are_those_of_peft_and_the_transformers_trainer(
    config, train, fabric, tiny_lm, tmp_path, learning_rate
):
    trained = train(EXAMPLES, learning_rate=learning_rate)
    frozen = load_frozen(config, tmp_path / "zoo", fabric)
    for adapter, rows in enumerate(EXAMPLES.values()):
        items = tokenized(rows, frozen)
        order = order_of_samples([len(item.input_ids) for item in items], 8 * 4, 4, seed=3)
        base, _ = load_base_model(str(tiny_lm), dtype="float32")
        model = PeftModel.from_pretrained(base, str(tmp_path / "zoo" / INITIAL_NAME), is_trainable=True)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            max_steps=8,
            per_device_train_batch_size=4,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=1,
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            remove_unused_columns=False,
            disable_tqdm=True,
        )
        trainer = InOrder(
            model=model, args=arguments, train_dataset=[items[index] for index in order], data_collator=padded
        )
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        assert [of_step[adapter] for of_step in trained.losses] == pytest.approx(losses, abs=1e-3)
        norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
        assert max(norms) > 1  # so that the clipping counts
        found = {
            f"{name.split('lora_')[1][0]} of {name.removeprefix('base_model.model.').split('.lora_')[0]}": value
            for name, value in model.state_dict().items()
            if "lora_" in name
        }
        torch.testing.assert_close(factors(trained.last, adapter), found, atol=1e-4, rtol=1e-3)


def test_the_loss_is_the_mean_over_response_tokens(config, train, fabric, tmp_path):
    frozen = load_frozen(config, tmp_path / "zoo", fabric)
    rows = EXAMPLES["mixed"]
    terms = []
    with torch.inference_mode():
        for item in tokenized(rows, frozen):
            logits = frozen.model(torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
            positions = range(item.num_prompt_tokens, len(item.input_ids))
            terms += [-logits[position - 1, item.input_ids[position]].item() for position in positions]
    assert len(terms) == sum(len(example.response) + 1 for example in rows)
    # B is zero at the start, so the first loss is that of the model itself.
    trained = train({"short": EXAMPLES["short"], "mixed": rows}, batch_size=len(rows))
    assert trained.losses[0][1] == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_training_fits_the_responses_and_changes_nothing_but_the_adapters(config, fabric, tmp_path):
    config = replace(config, training=replace(config.training, max_steps=30, learning_rate=3e-2))
    frozen = load_frozen(config, tmp_path / "zoo", fabric)
    before = {name: value.clone() for name, value in frozen.model.state_dict().items()}
    tasks = [task_of(name, rows, frozen) for name, rows in EXAMPLES.items()]
    initial = read_adapter(tmp_path / "zoo" / INITIAL_NAME)
    trained = train_adapters(
        tasks, frozen, config, initial=initial, num_steps=30, folder=tmp_path / "work", fabric=fabric
    )
    for adapter in range(len(tasks)):
        losses = [of_step[adapter] for of_step in trained.losses]
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    after = frozen.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


PREFIX = "You are a helpful assistant. "
INSTRUCTED = {
    name: [replace(row, prompt=f"{PREFIX}Task of {'x' * number}: {row.prompt}") for row in rows]
    for number, (name, rows) in enumerate(EXAMPLES.items())
}


@pytest.mark.parametrize("tokens_per_pass", ["auto", 90])
def test_reading_what_a_tasks_prompts_begin_with_once_changes_nothing(train, monkeypatch, tokens_per_pass):
    read = []

    def watch(model, sequences, **options):
        read.append([len(sequence) for sequence in sequences])
        return read_tokens(model, sequences, **options)

    monkeypatch.setattr(reading, "read_tokens", watch)
    monkeypatch.setattr(reading, "_PASS", 0)  # for so few tokens it would not pay
    shared = train(INSTRUCTED, tokens_per_pass=tokens_per_pass)
    assert min(length for lengths in read for length in lengths) >= len(PREFIX)
    assert any(len(set(lengths)) > 1 for lengths in read) or tokens_per_pass != "auto"
    read.clear()
    train(INSTRUCTED, dropout=0.1)
    train(INSTRUCTED, gradient_checkpointing=True)
    monkeypatch.setattr(frozen_module, "can_go_on", lambda model: False)
    apart = train(INSTRUCTED)
    assert not read
    for adapter in range(len(EXAMPLES)):
        single = replace(
            apart,
            checkpoints={step: stack.select([adapter]) for step, stack in apart.checkpoints.items()},
            losses=[[of_step[adapter]] for of_step in apart.losses],
        )
        assert_same(shared, single, adapter)


@pytest.mark.parametrize("counts", [(3, 3, 3), (1, 4, 2)])
def test_gradients_pass_through_what_is_read_once(config, fabric, tmp_path, counts):
    frozen = load_frozen(config, tmp_path / "zoo", fabric)
    samples = [tokenized(rows[:count], frozen) for rows, count in zip(INSTRUCTED.values(), counts, strict=True)]
    assert len(set(num_read_once([Batch.of(of_task) for of_task in samples]))) > 1
    found = []
    for is_shared in (False, True):
        torch.manual_seed(1)
        adapters = train_lora._copies(read_adapter(tmp_path / "zoo" / INITIAL_NAME), len(samples), fabric.device)
        weights = [*adapters.a_Kri.values(), *adapters.b_Kor.values()]
        for weight in weights:
            weight.data += 0.3 * torch.randn(weight.shape)
        with replace(frozen, reads_once=is_shared).response_nll(adapters, samples) as nll_B:
            nll_B.sum().backward()
        found.append((nll_B.detach(), [weight.grad for weight in weights]))
    assert all(bool(gradient.any()) for gradient in found[0][1])
    torch.testing.assert_close(found[0], found[1], atol=2e-4, rtol=1e-4)

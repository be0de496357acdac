"""Losses through the frozen language model: against plain calculations, and their gradients at the generated tokens."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lora_tokenizer import LoraAdapter, TokenLayout, TokenStats
from loragen_infer.adapters import AdapterStack, reading
from loragen_infer.adapters.reading import Batch, num_read_once
from loragen_infer.likelihood import response_nll
from loragen_infer.samples import Example, tokenize_example
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig
from loragen_train.configs.objectives import DistillConfig, LmConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.prompts.table import TaskPrompts
from loragen_train.training import teachers
from loragen_train.training.objectives import DistillObjective, LmObjective
from loragen_train.training.samples import NONE, SampleTable, TaskBatch
from loragen_train.training.tasks import _task_visits, _with_examples
from loragen_train.training.teachers import ExamplesTeacher, OwnTeacher, TeacherLoss, TopTokens
from loragen_train.training.through_lm import AdapterTokens, ThroughLm
from loragen_train.training.visits import Visit
from loragen_train.zoo.frozen import FrozenModel
from loragen_train.zoo.tokens import Zoo
from torch.nn.functional import cross_entropy, kl_div

# Of different lengths on both sides, so that no two ways of averaging agree.
SAMPLES = {
    "short": [Example(prompt=f"Q: {number}?", response=str(number**3)) for number in range(6)],
    "long": [Example(prompt="Q: say " + "so " * number, response="fox " * (1 + number)) for number in range(4)],
    "bare": [Example(prompt=f"Q: which is number {number}?", response="that one") for number in range(3)],
}
TASKS = list(SAMPLES)


def in_places(samples: dict[str, list[Example]]) -> dict[str, dict[str, Example]]:
    return {
        task: {f"{task}, row {row}": sample for row, sample in enumerate(rows, start=1)}
        for task, rows in samples.items()
    }


class Parts:
    """A tiny language model with adapters of its shape, and samples of three tasks, of which two have adapters."""

    def __init__(self, tiny_lm, make, **settings: object) -> None:
        self.adapters = [make.adapter(seed, num_layers=2) for seed in range(4)]
        self.layout = TokenLayout.from_adapter(self.adapters[0], token_dim=24)
        tokens = [self.layout.encode(adapter) for adapter in self.adapters]
        self.stats = TokenStats.from_tokens(tokens)
        self.zoo = Zoo(layout=self.layout, stats=self.stats, tokens=tokens, tasks=["short", "short", "long", "long"])
        options = {"device": "cpu", "precision": "fp32", "tokens_per_pass": 1000, **settings}
        self.frozen = FrozenModel.load(str(tiny_lm), self.adapters[0].modules, **options)
        val = {task: rows[-1:] for task, rows in SAMPLES.items()}
        train = {task: rows[:-1] for task, rows in SAMPLES.items()}
        prompts = TaskPrompts(train={}, val={}, train_samples=in_places(train), val_samples=in_places(val))
        self.table = SampleTable(prompts, self.frozen.tokenizer, LmConfig())
        self.tokens = AdapterTokens(self.layout)
        self.through = ThroughLm(self.frozen, self.tokens, self.table.items)
        torch.manual_seed(0)
        self.predicted = torch.randn(3, *self.stats.mean.shape).requires_grad_()

    def batch(self) -> TaskBatch:
        """Two samples of each task, of one only one; examples for each."""
        samples = torch.tensor([list(self.table.train[task])[:2] for task in TASKS])
        samples[1, 1] = NONE
        shown = torch.tensor([[[list(self.table.train[task])[-1], NONE]] * 2 for task in TASKS])
        prompts = torch.zeros(3, 1, dtype=torch.long)
        known = torch.tensor([0, 1, -1])
        return TaskBatch(prompts, prompts == 0, known, known, samples, shown, torch.tensor([1.0, 1.0, 0.0]))

    def adapter(self, tokens_NW: torch.Tensor) -> LoraAdapter:
        return self.layout.decode(tokens_NW)

    def logits(self, adapter: LoraAdapter | None, input_ids: list[int], num_prompt_tokens: int) -> torch.Tensor:
        """The plain way: one sample, one adapter merged into the weights, no padding, no cache."""
        weights = {} if adapter is None else {name: adapter.delta_weight(name) for name in adapter.modules}
        for name, delta in weights.items():
            self.frozen.model.get_submodule(name).weight.data += delta
        with torch.no_grad():
            logits_SV = self.frozen.model(torch.tensor([input_ids])).logits[0]
        for name, delta in weights.items():
            self.frozen.model.get_submodule(name).weight.data -= delta
        return logits_SV[num_prompt_tokens - 1 : -1]


@pytest.fixture(autouse=True)
def _beginnings_are_read_once(monkeypatch):
    """However few tokens that spares: what is compared with reads every sample by itself."""
    monkeypatch.setattr(reading, "_PASS", 0)


@pytest.fixture
def parts(tiny_lm, make) -> Parts:
    return Parts(tiny_lm, make)


def lm_loss(parts: Parts, **changes: object) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch, and its gradient at the generated tokens."""
    objective = LmObjective(parts.through, parts.table, parts.stats)
    parts.predicted.grad = None
    loss = objective(parts.predicted, parts.batch()._replace(**changes), is_training=True, is_measured=False)
    loss.backward()
    return loss.detach(), parts.predicted.grad.clone()


def test_the_loss_is_the_mean_over_tokens_then_samples_then_tasks(parts):
    expected = []
    for place, task in enumerate(TASKS):
        adapter = parts.adapter(parts.stats.denormalize(parts.predicted[place].detach()))
        items = [parts.table.items[number] for number in parts.batch().samples[place].tolist() if number != NONE]
        of_samples = [
            cross_entropy(
                parts.logits(adapter, item.input_ids, item.num_prompt_tokens), torch.tensor(item.response_ids)
            )
            for item in items
        ]
        assert len(of_samples) == (1 if task == "long" else 2)
        expected.append(torch.stack(of_samples).mean())
    assert lm_loss(parts)[0].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)

    objective = LmObjective(parts.through, parts.table, parts.stats)
    with torch.no_grad():
        objective(parts.predicted, parts.batch(), is_training=False, is_measured=True)
    # The last task of the batch is a repeat, which validation does not count.
    logged = objective.val_metrics.compute()
    assert (
        logged["nll"].item()
        == logged["loss"].item()
        == pytest.approx(torch.stack(expected[:2]).mean().item(), rel=1e-4)
    )


def test_the_gradient_is_that_of_one_pass_without_gathering(parts):
    """All at once, through autograd alone, from the tokens to the loss."""
    batch = parts.batch()
    samples = [[number for number in row if number != NONE] for row in batch.samples.tolist()]
    items = [[parts.table.items[number] for number in row] for row in samples]
    tokens = parts.stats.mean + parts.predicted * parts.stats.std
    assert all(num_read_once([Batch.of(of_task) for of_task in items]))
    flat = [item for row in items for item in row]
    with parts.frozen.batched.applied(parts.tokens.stack(tokens), num_samples=[len(row) for row in items]):
        nll_B = response_nll(parts.frozen.model, flat, padding=0)
        per_token = nll_B / torch.tensor([len(item.response_ids) for item in flat])
        loss = torch.stack([part.mean() for part in per_token.split([len(row) for row in items])]).mean()
        loss.backward()
    expected = parts.predicted.grad.clone()
    assert expected.abs().max() > 0
    found, gradient = lm_loss(parts)
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"tokens_per_pass": 60}, {"tokens_per_pass": 1}, {"gradient_checkpointing": True}])
def test_passes_and_checkpoints_change_neither_loss_nor_gradient(parts, tiny_lm, make, changes):
    found = []
    for one in (Parts(tiny_lm, make, **changes), parts):
        # Passes of other sizes round otherwise, and the tiny model's gradients are steep: 2e-4 apart in float32.
        one.frozen.model.double().set_attn_implementation("sdpa")
        one.predicted = one.predicted.detach().double().requires_grad_()
        found.append(lm_loss(one))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)


def test_every_pass_ends_its_backward_pass_before_the_next_begins(tiny_lm, make, monkeypatch):
    parts = Parts(tiny_lm, make, tokens_per_pass=1)
    calls = []
    original = torch.autograd.backward

    def backward(loss, *args, **kwargs):
        calls.append(loss)
        return original(loss, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "backward", backward)
    objective = LmObjective(parts.through, parts.table, parts.stats)
    loss = objective(parts.predicted, parts.batch(), is_training=True, is_measured=False)
    assert len(calls) == 5
    assert parts.predicted.grad is None
    loss.backward()
    assert parts.predicted.grad is not None


def test_the_frozen_model_gets_no_gradient_and_does_not_change(parts):
    before = {name: value.clone() for name, value in parts.frozen.model.state_dict().items()}
    lm_loss(parts)
    assert all(torch.equal(value, before[name]) for name, value in parts.frozen.model.state_dict().items())
    assert all(value.grad is None for value in parts.frozen.model.parameters())


def test_the_loss_falls_through_the_tokens_alone(parts):
    optimizer = torch.optim.Adam([parts.predicted], lr=0.05)
    losses = []
    for _ in range(15):
        losses.append(lm_loss(parts)[0].item())
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_the_teacher_of_a_task_is_its_last_checkpoint(parts):
    config = DistillConfig(top_k=5, temperature=2.0)
    teacher = OwnTeacher(parts.frozen, parts.tokens, parts.zoo, parts.table, config)
    batch = TaskBatch(*(part[:2] for part in parts.batch()))
    taught = teacher(batch)
    assert set(taught) == {number for number in batch.samples.flatten().tolist() if number != NONE}
    for task, place in (("short", 1), ("long", 3)):
        for number in batch.samples[("short", "long").index(task)].tolist():
            if number == NONE:
                continue
            item = parts.table.items[number]
            logits_RV = parts.logits(parts.adapters[place], item.input_ids, item.num_prompt_tokens)
            top = (logits_RV / 2).topk(5, dim=1)
            assert torch.equal(taught[number].tokens, top.indices)
            torch.testing.assert_close(taught[number].probabilities, top.values.softmax(dim=1), atol=1e-5, rtol=1e-4)


def test_tasks_without_validation_samples_do_not_shift_the_teachers_of_the_others(parts):
    data = DataConfig(checkpoint_dir="none", prompts_per_condition=1)
    training = TrainingConfig(objective="distill", distill=DistillConfig(teacher="own"))
    del parts.table.val["short"]
    prompts = SimpleNamespace(train=dict.fromkeys(TASKS, range(1)), val=dict.fromkeys(TASKS, range(1)))
    visits = _task_visits(training, data, parts.zoo, prompts, parts.table, ["short", "long"], {}).val
    batch = visits.collate([visits[Visit(0, 0, 0)]])
    (number,) = set(batch.samples.flatten().tolist()) - {NONE}
    assert number in parts.table.val["long"]
    taught = OwnTeacher(parts.frozen, parts.tokens, parts.zoo, parts.table, DistillConfig(top_k=5))(batch)
    item = parts.table.items[number]
    logits_RV = parts.logits(parts.adapters[3], item.input_ids, item.num_prompt_tokens)
    torch.testing.assert_close(
        taught[number].probabilities, logits_RV.topk(5, dim=1).values.softmax(dim=1), atol=1e-5, rtol=1e-4
    )


def test_a_teacher_that_sees_solved_samples_never_sees_the_answer_that_is_asked(parts):
    config = DistillConfig(teacher="examples", num_examples=2, top_k=3)
    batch = parts.batch()
    taught = ExamplesTeacher(parts.frozen, parts.table, config)(batch)
    for numbers, shown in zip(batch.samples.tolist(), batch.shown.tolist(), strict=True):
        for number, others in zip(numbers, shown, strict=True):
            if number == NONE:
                continue
            examples = [parts.table.examples[other] for other in others if other != NONE]
            whole = tokenize_example(parts.frozen.tokenizer, parts.table.examples[number], shots=examples)
            logits_RV = parts.logits(None, whole.input_ids, whole.num_prompt_tokens)
            top = logits_RV.topk(3, dim=1)
            assert torch.equal(taught[number].tokens, top.indices)
            torch.testing.assert_close(taught[number].probabilities, top.values.softmax(dim=1), atol=1e-5, rtol=1e-4)
    parts.frozen.model.config.max_position_embeddings = 20
    with pytest.raises(
        LoragenTrainError, match=r"^2 solved samples of 'short' before another may have \d+ tokens, but"
    ):
        ExamplesTeacher(parts.frozen, parts.table, config)


def test_a_teacher_sees_solved_samples_cut_off_as_the_training_does(parts, monkeypatch):
    """So that they are no longer than the language model takes, which is checked of what is cut off."""
    long = {f"row {number}": Example(prompt="why " * (40 + number), response="so") for number in range(4)}
    samples = {"task": dict(list(long.items())[:3])}
    prompts = TaskPrompts(train={}, val={}, train_samples=samples, val_samples={"task": {"row 3": long["row 3"]}})
    table = SampleTable(prompts, parts.frozen.tokenizer, LmConfig(max_length=50, too_long="truncate"))
    assert [tokenize_example(parts.frozen.tokenizer, example) for example in table.examples] == table.items
    seen = []
    ask = teachers._ask

    def watched(frozen, adapters, items, *args, **kwargs):
        seen.extend(item for of_adapter in items for item in of_adapter)
        return ask(frozen, adapters, items, *args, **kwargs)

    monkeypatch.setattr(teachers, "_ask", watched)
    one = torch.zeros(1, 1, dtype=torch.long)
    batch = TaskBatch(one, one == 0, one[0], one[0], torch.tensor([[0]]), torch.tensor([[[1, 2]]]), torch.ones(1))
    config = DistillConfig(teacher="examples", num_examples=2, top_k=3)
    ExamplesTeacher(parts.frozen, table, config)(batch)
    # A blank line, and no end of an answer, after each solved one.
    assert [len(item.input_ids) for item in seen] == [sum(len(item.input_ids) for item in table.items[:3]) + 2]


def test_tasks_that_a_teacher_can_be_shown_nothing_of_are_left_out_and_few_samples_named(caplog):
    table = SimpleNamespace(train={"one": range(1), "two": range(1, 3), "more": range(3, 9)})
    assert _with_examples(table, 2) == ["two", "more"]
    assert "Not distilled, for want of a second sample: one." in caplog.text
    assert "The teacher is shown fewer than 2 samples of: two." in caplog.text
    with pytest.raises(LoragenTrainError, match="no task has two; add samples"):
        _with_examples(SimpleNamespace(train={"one": range(1)}), 2)


def test_the_distance_from_a_teacher_is_the_divergence_over_its_likely_tokens():
    torch.manual_seed(0)
    student_RV, teacher_RV = torch.randn(2, 3, 7).requires_grad_()
    top = (teacher_RV / 2).topk(7, dim=1)
    taught = {5: TopTokens(top.indices.detach(), top.values.softmax(dim=1).detach())}
    loss_R = TeacherLoss(taught, 2.0)(student_RV, [5])
    expected = kl_div(
        (student_RV / 2).log_softmax(1), (teacher_RV / 2).log_softmax(1), reduction="none", log_target=True
    )
    torch.testing.assert_close(loss_R, 4 * expected.sum(dim=1), atol=1e-5, rtol=1e-4)
    same = TeacherLoss(taught, 2.0)(teacher_RV, [5])
    torch.testing.assert_close(same, torch.zeros(3), atol=1e-5, rtol=0)


def test_distilling_ones_own_adapter_starts_at_zero_where_that_is_generated(parts):
    config = DistillConfig(top_k=1000)
    teacher = OwnTeacher(parts.frozen, parts.tokens, parts.zoo, parts.table, config)
    objective = DistillObjective(parts.through, parts.table, parts.stats, teacher, config.temperature)
    batch = TaskBatch(*(part[:2] for part in parts.batch()))
    own = torch.stack([parts.stats.normalize(parts.zoo.tokens[place]) for place in (1, 3)]).requires_grad_()
    loss = objective(own, batch, is_training=True, is_measured=False)
    assert loss.item() == pytest.approx(0, abs=1e-4)
    other = parts.predicted[:2].detach().requires_grad_()
    loss = objective(other, batch, is_training=True, is_measured=False)
    loss.backward()
    assert loss.item() > 0.1
    assert other.grad.abs().max() > 0


def test_adapters_of_another_model_are_refused_by_shape(parts, make):
    tokens = AdapterTokens(TokenLayout.from_adapter(make.adapter(0, width=48, num_layers=2), token_dim=24))
    with pytest.raises(
        LoragenTrainError,
        match=r"^The adapters are for a 'model\.layers\.0\.self_attn\.q_proj' of 48 to 48 features, but that of the "
        r"base model tiny has 32 to 32; give theirs as training\.lm\.base_model\.$",
    ):
        tokens.check_fits(parts.frozen.model, "tiny")


def test_what_is_more_than_two_factors_cannot_be_trained_through(make):
    adapter = make.adapter(0)
    sizes = {name: len(value) for name, value in adapter.tensors.items() if name.endswith("lora_B.weight")}
    vectors = {name.replace("lora_B.weight", "lora_magnitude_vector"): torch.ones(size) for name, size in sizes.items()}
    dora = LoraAdapter(config=replace(adapter.config, use_dora=True), tensors={**adapter.tensors, **vectors})
    layout = TokenLayout.from_adapter(dora, token_dim=24)
    with pytest.raises(LoragenTrainError, match=r"lora_magnitude_vector, and only A and B of linear layers can be tra"):
        AdapterTokens(layout)


def test_rank_stabilised_scaling_is_applied(parts, make):
    adapter = make.adapter(0, num_layers=2, use_rslora=True)
    layout = TokenLayout.from_adapter(adapter, token_dim=24)
    stack = AdapterTokens(layout).stack(layout.encode(adapter)[None])
    plain = AdapterStack.of([adapter])
    assert stack.scaling_K["model.layers.0.self_attn.q_proj"].item() == pytest.approx(4 / 2**0.5)
    for name in plain.a_Kri:
        torch.testing.assert_close(stack.a_Kri[name], plain.a_Kri[name])
        torch.testing.assert_close(stack.b_Kor[name], plain.b_Kor[name])
        torch.testing.assert_close(stack.scaling_K[name], plain.scaling_K[name])

"""What is said of scores whose truth is known: tables of exact numbers, and simulations without any difference."""

import numpy as np
import pytest
from loragen_infer.evaluation.report import format_evaluation
from loragen_infer.evaluation.results import TaskResult, summarise
from loragen_infer.evaluation.scoring import ExampleScores


def scored(name, nll, *, held_out=True, exact=None, correct=None, num_examples=4):
    """A task with rows of the same NLL per answer token, two tokens each, in every example."""
    rows = {
        row: ExampleScores(
            answer_nll=(2 * value,) * num_examples,
            num_tokens=(2,) * num_examples,
            exact=(exact or {}).get(row, (False,) * num_examples),
            correct=(correct or {}).get(row),
        )
        for row, value in nll.items()
    }
    return TaskResult(task=name, held_out=held_out, wrong_tasks=[], rows=rows, costs={}, notes={})


def find(tasks, **options):
    return summarise(tasks, num_resamples=200, seed=0, **options)


def test_scores_of_a_task_are_those_of_its_examples():
    task = scored(
        "a",
        {"base": 3.0, "ridge": 1.5, "generated": 2.0, "own": 1.0},
        exact={"own": (True, True, False, True)},
        correct={"own": (True, False, False, False)},
    )
    scores = find([task]).tasks[0].scores
    assert {row: score.nll for row, score in scores.items()} == {"base": 3, "ridge": 1.5, "generated": 2, "own": 1}
    assert {row: score.gap_closed for row, score in scores.items()} == pytest.approx(
        {"base": 0, "ridge": 0.75, "generated": 0.5, "own": 1}
    )
    assert scores["generated"].nll_above_ridge == pytest.approx(0.5)
    assert scores["generated"].nll_interval == (2, 2)
    assert (scores["own"].exact_match, scores["own"].accuracy) == (0.75, 0.25)
    assert scores["base"].accuracy is None
    assert scores["own"].num_examples == 4


def test_tokens_weigh_alike_in_a_task_and_tasks_weigh_alike_in_a_group():
    uneven = ExampleScores(answer_nll=(1.0, 9.0), num_tokens=(1, 4), exact=(True, False), correct=None)
    first = TaskResult(task="a", held_out=True, wrong_tasks=[], rows={"generated": uneven}, costs={}, notes={})
    found = find([first, scored("b", {"generated": 4.0}, num_examples=8)])
    assert found.tasks[0].scores["generated"].nll == 2.0
    (group,) = found.groups
    assert group.scores["generated"].nll == 3.0
    assert group.scores["generated"].exact_match == 0.25
    assert group.scores["generated"].num_examples == 10


def test_groups_are_what_training_saw_and_hold_the_rows_that_all_tasks_have():
    found = find(
        [
            scored("a", {"base": 2.0, "own": 1.0}, held_out=False),
            scored("b", {"base": 3.0}, held_out=False),
            scored("c", {"base": 5.0}, held_out=True),
            scored("d", {"base": 7.0}, held_out=None),
        ]
    )
    assert [(group.name, group.tasks, list(group.scores)) for group in found.groups] == [
        ("held-out tasks", ["c"], ["base"]),
        ("training tasks", ["a", "b"], ["base"]),
        ("tasks", ["d"], ["base"]),
    ]


def test_what_is_not_in_a_mean_because_some_tasks_have_none_is_said_once_for_each_group():
    rows = {"base": 3.0, "generated": 2.0, "own": 1.0}
    some = {"base": 3.0, "generated": 2.0}
    correct = dict.fromkeys(rows, (True, False, True, True))
    tasks = [scored("t0", some, correct=correct)]
    tasks += [scored(f"t{place}", rows, correct=correct if place > 2 else None) for place in range(1, 12)]
    tasks += [
        scored(f"s{place}", some | {"few-shot": 1.0, "own": 1.0} if place else some, held_out=False) for place in (0, 1)
    ]
    tasks += [scored(f"u{place}", rows if place == 9 else some, held_out=None) for place in range(10)]
    found = find(tasks)
    assert list(found.groups[0].scores) == ["base", "generated"]
    assert found.groups[0].scores["base"].accuracy is None
    assert [remark for remark in found.remarks if "missing" in remark] == [
        "own is missing from the mean of the 12 held-out tasks: t0 has none.",
        "accuracy is missing from the mean of the 12 held-out tasks: t1 and t2 have none.",
        "few-shot and own are missing from the mean of the 2 training tasks: s0 has none.",
        "own is missing from the mean of the 10 tasks: u0, u1, u2, u3, u4 and 4 more have none.",
    ]


# By differences of generated and ridge on the tasks: the outcome, and on how many generated is the better.
KNOWN = [
    ([-0.5] * 5, "better", 5),
    ([0.5] * 5, "worse", 0),
    ([0.0] * 5, "neither", 0),
    ([-0.5, -0.4, -0.6, -0.5, 0.5], "neither", 4),
    ([-0.5, -0.4, -0.6, -0.3, -0.2, -0.5, -0.4, 0.1], "better", 7),
    ([0.3, -0.3] * 6, "neither", 6),
    ([-0.5] * 4, None, 4),
    ([-0.5, 0.5, 0.5], None, 1),
    ([-0.5], None, 1),
]


@pytest.mark.parametrize(("differences", "outcome", "num_better"), KNOWN)
def test_a_verdict_comes_from_five_tasks_that_agree_and_from_no_fewer(differences, outcome, num_better):
    tasks = [scored(f"t{place}", {"ridge": 2.0, "generated": 2.0 + value}) for place, value in enumerate(differences)]
    (verdict,) = find(tasks).verdicts
    assert (verdict.outcome, verdict.num_better, verdict.num_tasks) == (outcome, num_better, len(differences))
    assert verdict.difference == pytest.approx(np.mean(differences))
    of_tasks = f"below zero on {num_better} of {len(differences)} task{'s' if len(differences) > 1 else ''}"
    assert of_tasks in verdict.sentence
    assert (verdict.interval is None) == (outcome is None)
    assert ("that is no verdict, which needs 5 tasks or more" in verdict.sentence) == (outcome is None)


@pytest.mark.parametrize("num_tasks", [5, 6, 10])
@pytest.mark.parametrize(("between", "within"), [(0.3, 0.0), (0.3, 1.0), (0.0, 1.0)])
def test_without_any_true_difference_a_verdict_is_rare(num_tasks, between, within):
    """``between``: scatter of the difference from task to task; ``within``: from example to example."""
    draw = np.random.default_rng(num_tasks)
    given = 0
    for _ in range(200):
        tasks = []
        for place in range(num_tasks):
            ridge = draw.gamma(4.0, 0.5, size=20)
            difference = draw.normal(0.0, between) + draw.normal(0.0, within, size=20)
            rows = {
                row: ExampleScores(answer_nll=tuple(nll), num_tokens=(1,) * 20, exact=(False,) * 20, correct=None)
                for row, nll in (("ridge", ridge), ("generated", ridge + difference))
            }
            tasks.append(TaskResult(task=str(place), held_out=True, wrong_tasks=[], rows=rows, costs={}, notes={}))
        given += find(tasks).verdicts[0].outcome != "neither"
    assert given <= 0.1 * 200


def test_what_stands_under_the_tables_is_said_once_and_in_full():
    rows = {"base": 3.0, "ridge": 2.0, "generated": 1.5, "wrong prompts": 2.5}
    tasks = [scored(f"t{place}", rows) for place in range(5)] + [scored("seen", rows, held_out=False)]
    found = find(tasks, remarks=["And this."])
    assert [verdict.sentence for verdict in found.verdicts] == [
        "On the 5 held-out tasks, generated − ridge is -0.500 nats per answer token [-0.500, -0.500], below zero on 5 "
        "of 5 tasks: the generator beats ridge regression.",
        "On the 5 held-out tasks, generated − wrong prompts is -1.000 nats per answer token [-1.000, -1.000], below "
        "zero on 5 of 5 tasks: the generator does better with the right prompts than with other tasks'.",
        "On the training task seen, generated − ridge is -0.500 nats per answer token, below zero on 1 of 1 task; that "
        "is no verdict, which needs 5 tasks or more.",
        "On the training task seen, generated − wrong prompts is -1.000 nats per answer token, below zero on 1 of 1 "
        "task; that is no verdict, which needs 5 tasks or more.",
    ]
    assert found.remarks == [
        "On the 5 held-out tasks, the best row without a generator is ridge with 2.000; generated has 1.500.",
        "On the training task seen, the best row without a generator is ridge with 2.000; generated has 1.500.",
        "What the generator is worth shows on held-out tasks; on training tasks it need only remember an adapter.",
        "And this.",
    ]


def test_no_negative_zero_and_no_plural_of_one_in_the_tables():
    rows = {"base": 2.0, "ridge": 2.0, "generated": 1.99999, "own": 1.0, "junk": 2.0001}
    text = format_evaluation(find([scored("one", rows, num_examples=1), scored("two", rows)]))
    assert "one (held out, 1 example)" in text
    assert "two (held out, 4 examples)" in text
    assert "-0 " not in text
    assert "-0.000" not in text
    assert "mean over the 2 held-out tasks" in text

"""Tasks that a network remembers: whose prompts are recognised, what they give, and what learns for all others."""

import pytest
import torch
from hyperconv import GeneratorConfig, HyperConvError, HyperConvGenerator, fit_ridge, left_out_fits, relatives
from hyperconv.directions import PromptDirections
from hyperconv.memory import TaskMemory
from hypothesis import given, settings
from hypothesis import strategies as st

D, NUM_TASKS, NUM_PROMPTS = 16, 6, 40
SMALL = {"condition_dim": D, "hidden_dim": 8, "grid": (4, 3), "output_dim": 8, "num_hyperconv_blocks": 0}


def prompts_of(num_tasks, *, seed=0, spread=0.2):
    """Embeddings [P, D] of the prompts of tasks that lie well apart."""
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_tasks, 1, D, generator=draw)
    return list(centers + spread * torch.randn(num_tasks, NUM_PROMPTS, D, generator=draw))


def made(num_tasks=NUM_TASKS, **options):
    """A generator that remembers its tasks, with their prompts, rows, fit and tokens."""
    torch.manual_seed(0)
    prompts = prompts_of(num_tasks)
    rows_KSD = torch.stack([torch.stack([task[s::4].mean(0) for s in range(4)]) for task in prompts])
    means_KNW = torch.randn(num_tasks, 12, 8)
    fit = fit_ridge(rows_KSD, means_KNW.flatten(1) @ means_KNW.flatten(1).T, penalties=[0.5])
    sizes = {"num_basis": num_tasks - 1, "num_tasks": num_tasks, "num_corrections": num_tasks - 1}
    config = GeneratorConfig(**{**SMALL, **sizes, **options})
    generator = HyperConvGenerator(config)
    generator.start_from(fit, means_KNW, prompts)
    return generator, prompts, rows_KSD, fit, means_KNW


def mixed(weights_BK, means_KNW):
    return torch.einsum("bk,knw->bnw", weights_BK, means_KNW)


@pytest.mark.parametrize("blocks", [0, 2])
def test_a_tasks_own_prompts_give_its_own_tokens_and_all_others_the_regression(blocks):
    generator, prompts, _, fit, means_KNW = made(num_hyperconv_blocks=blocks)
    own_BPD = torch.stack(prompts)
    torch.testing.assert_close(generator(own_BPD), means_KNW, rtol=1e-4, atol=1e-4)
    other_BPD = torch.stack([task[:8] + 10 for task in prompts[:3]])
    expected = mixed(fit.task_weights(other_BPD.mean(1)), means_KNW)
    torch.testing.assert_close(generator(other_BPD), expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), num_prompts=st.sampled_from([1, 2, 8, 32]), spread=st.sampled_from([0.05, 0.2, 0.4]))
def test_who_is_recognised(seed, num_prompts, spread):
    prompts = prompts_of(NUM_TASKS, seed=seed, spread=spread)
    memory = TaskMemory(NUM_TASKS, D)
    memory.fit(prompts)
    prompts[-1] = prompts[-1] + 10  # a task that was never seen
    means_BD = torch.stack([task[:num_prompts].mean(0) for task in prompts])
    known_BT = memory(means_BD, torch.full((NUM_TASKS,), num_prompts))
    assert ((known_BT >= 0) & (known_BT <= 1)).all()
    assert (known_BT > 0).sum(1).max() <= 1
    assert known_BT[-1].sum() == 0
    if num_prompts == 32:
        assert known_BT[:-1].diagonal().min() == 1


def variants_of(num_tasks, *, num_variants=4):
    """Prompts of tasks that come in variants each, all but the same where the first tasks are; and fresh ones."""
    draw = torch.Generator().manual_seed(0)
    known, fresh = [], []
    for number in range(num_tasks):
        family_D, apart = torch.randn(D, generator=draw), 0.02 if number < 2 else 0.5
        for _ in range(num_variants):
            center_D = family_D + apart * torch.nn.functional.normalize(torch.randn(D, generator=draw), dim=0)
            known.append(center_D + 0.2 * torch.randn(NUM_PROMPTS, D, generator=draw))
            fresh.append(center_D + 0.2 * torch.randn(16, D, generator=draw))
    return known, fresh


def test_variants_of_a_task_are_recognised_each_and_one_never_seen_is_half_of_another():
    known, fresh = variants_of(NUM_TASKS)
    memory = TaskMemory(len(known), D)
    memory.fit(known)
    num_prompts_B = torch.full((len(known),), 16)
    known_BT = memory(torch.stack([task_PD.mean(0) for task_PD in fresh]), num_prompts_B)
    assert known_BT.diagonal()[8:].min() > 0.9
    assert known_BT[:8].sum(1).min() > 0.9  # by whatever variant of theirs
    for left_out in (8, 13, 23):
        memory = TaskMemory(len(known) - 1, D)
        memory.fit([task_PD for number, task_PD in enumerate(known) if number != left_out])
        known_BT = memory(fresh[left_out].mean(0, keepdim=True), num_prompts_B[:1])
        assert 0.49 < known_BT.max() < 0.6
        first = left_out - left_out % 4
        assert first <= known_BT.argmax() < first + 3  # a variant of the same


def test_a_memory_from_before_it_knew_of_variants_recognises_what_it_did():
    tasks = prompts_of(NUM_TASKS)
    memory = TaskMemory(NUM_TASKS, D)
    memory.fit(tasks)
    state = {name: value for name, value in memory.state_dict().items() if name not in ("reach", "num_prompts_T")}
    before = TaskMemory(NUM_TASKS, D)
    before.load_state_dict(state)
    means_BD, num_prompts_B = torch.stack([task.mean(0) for task in tasks]), torch.full((NUM_TASKS,), NUM_PROMPTS)
    assert torch.equal(before(means_BD, num_prompts_B), torch.eye(NUM_TASKS))
    assert before.reach == 0


def test_a_lone_task_and_twins_are_not_recognised():
    (prompts_PD,) = prompts_of(1)
    for tasks in ([prompts_PD], [prompts_PD, prompts_PD]):
        memory = TaskMemory(len(tasks), D)
        memory.fit(tasks)
        assert memory(prompts_PD.mean(0, keepdim=True), torch.tensor([NUM_PROMPTS])).sum() == 0


def test_of_tasks_with_the_same_prompts_the_first_is_recognised():
    twin_PD, _, *others = prompts_of(NUM_TASKS)
    memory = TaskMemory(NUM_TASKS, D)
    memory.fit([twin_PD, twin_PD, *others])
    known_BT = memory(twin_PD.mean(0, keepdim=True), torch.tensor([NUM_PROMPTS]))
    assert known_BT.tolist() == [[1, *[0] * (NUM_TASKS - 1)]]


def test_nothing_is_recognised_before_a_start():
    generator = HyperConvGenerator(GeneratorConfig(**SMALL, num_tasks=3))
    assert generator(torch.zeros(1, 4, D)).abs().sum() == 0


def test_left_out_features_are_those_of_a_regression_on_the_tasks_that_are_no_relatives():
    generator, prompts, rows_KSD, fit, means_KNW = made()
    left_out = generator.leave_out(left_out_fits(rows_KSD, fit.penalty))
    for task in range(NUM_TASKS):
        others = (~relatives(rows_KSD)[task]).nonzero().flatten()
        means_OV = means_KNW[others].flatten(1)
        anew = fit_ridge(rows_KSD[others], means_OV @ means_OV.T, penalties=[fit.penalty])
        condition_BPD = prompts[task][None, :8]
        features_BK = left_out(condition_BPD.mean(1), torch.tensor([task]))
        expected = mixed(anew.task_weights(condition_BPD.mean(1)), means_KNW[others])
        torch.testing.assert_close(generator(condition_BPD, features=features_BK), expected, rtol=1e-4, atol=1e-4)
    condition_BPD = torch.randn(2, 3, D)
    features_BK = left_out(condition_BPD.mean(1), torch.tensor([-1, -1]))
    torch.testing.assert_close(generator(condition_BPD, features=features_BK), generator(condition_BPD))


@pytest.mark.parametrize("num_blocks", [0, 1])
def test_a_shift_is_what_a_start_from_other_tokens_gives(num_blocks):
    generator, prompts, rows_KSD, fit, means_KNW = made(num_hyperconv_blocks=num_blocks)
    unseen_ENW = torch.randn(2, *means_KNW.shape[1:])
    condition_BPD = torch.stack(prompts)[:, :8]
    answers = []
    for unseen_NW in unseen_ENW:
        generator.start_from(fit, means_KNW, prompts, (), unseen_NW)
        with torch.no_grad():
            generator.expander.corrections.normal_(generator=torch.Generator().manual_seed(0))
            if generator.output_projection is not None:
                generator.output_projection.weight.normal_(generator=torch.Generator().manual_seed(0))
        features_BK = generator.leave_out(left_out_fits(rows_KSD, fit.penalty))(
            condition_BPD.mean(1), torch.arange(NUM_TASKS)
        )
        answers.append(generator(condition_BPD, features=features_BK))
    shift_BNW = (unseen_ENW[0] - unseen_ENW[1]).expand(NUM_TASKS, -1, -1)
    shifted = generator(condition_BPD, features=features_BK, shift=shift_BNW)
    assert not torch.allclose(answers[1], answers[0], atol=0.1)
    torch.testing.assert_close(shifted, answers[0], rtol=1e-4, atol=1e-4)


def test_tokens_for_unseen_tasks_are_learned_where_that_is_said():
    generator, prompts, _, fit, means_KNW = made()
    for learns in (False, True):
        generator.start_from(fit, means_KNW, prompts, (), torch.randn(means_KNW.shape[1:]), learns_unseen=learns)
        assert generator.expander.shared.requires_grad is learns
    generator.start_from(fit, means_KNW, prompts)
    assert generator.expander.shared.requires_grad


def test_corrections_learn_for_prompts_that_are_not_recognised_only():
    generator, prompts, *_ = made(num_hyperconv_blocks=1)
    trained = {name for name, parameter in generator.named_parameters() if parameter.requires_grad}
    start = {"expander.offset", "expander.basis", "expander.features.weight"}
    assert {"expander.shared", "expander.corrections", "expander.strength"} <= trained
    assert not start & trained
    generator(torch.stack(prompts)).square().sum().backward()
    assert generator.expander.shared.grad.abs().max() < 1e-6
    assert generator.expander.corrections.grad.abs().max() < 1e-6
    generator.zero_grad()
    generator(torch.randn(2, 8, D)).square().sum().backward()
    assert generator.expander.shared.grad.abs().min() > 0
    assert generator.expander.corrections.grad.flatten(1).abs().sum(1).min() > 0
    assert generator.output_projection.weight.grad.abs().sum() > 0


def test_corrections_follow_the_directions_in_which_all_prompts_differ():
    others = [prompts_PD + 3 for prompts_PD in prompts_of(4, seed=1)]
    _, prompts, _, fit, means_KNW = made()
    generator = HyperConvGenerator(GeneratorConfig(**SMALL, num_tasks=NUM_TASKS, num_corrections=3))
    generator.start_from(fit, means_KNW, prompts, others)
    torch.nn.init.normal_(generator.expander.shared)
    torch.nn.init.normal_(generator.expander.corrections)
    start = HyperConvGenerator(generator.config)
    start.start_from(fit, means_KNW, prompts, others)
    unseen_BPD = torch.stack([task[:8] for task in prompts_of(5, seed=2)])
    means_MD = torch.stack([task.mean(0) for task in prompts + others]).double()
    axes_DR = torch.linalg.svd(means_MD - means_MD.mean(0)).Vh[:3].T
    place_BR = (
        (unseen_BPD.mean(1) - means_MD.mean(0)) @ axes_DR / ((means_MD - means_MD.mean(0)) @ axes_DR).std(0, False)
    )
    shared, patterns = generator.expander.shared.double(), generator.expander.corrections.double()
    signs_R = torch.sign((generator.expander.directions.axes_RD.double() @ axes_DR).diagonal())
    mixed_BLHW = torch.einsum("br,rlhw->blhw", place_BR.clamp(-3, 3) * signs_R * 2 / 3, patterns) + shared
    found = generator(unseen_BPD) - start(unseen_BPD)
    torch.testing.assert_close(found, 30 * mixed_BLHW.flatten(1, 2).float(), rtol=1e-3, atol=1e-2)


def test_a_network_whose_first_correction_was_the_shared_one_makes_the_same_of_its_prompts():
    generator, *_ = made()
    torch.nn.init.normal_(generator.expander.shared)
    torch.nn.init.normal_(generator.expander.corrections)
    state = generator.state_dict()
    shared = state.pop("expander.shared")
    state["expander.corrections"] = torch.cat([shared[None], state["expander.corrections"]])
    again = HyperConvGenerator(generator.config, device="meta")  # as bundles are loaded
    again.load_state_dict(state, assign=True)
    condition_BPD = torch.stack([task[:8] for task in prompts_of(3, seed=2)])
    assert torch.equal(again(condition_BPD), generator(condition_BPD))


def test_a_network_from_before_the_directions_makes_the_same_of_its_prompts():
    generator, _, _, fit, _ = made(num_corrections=8)  # which it cut down to the five features of its start
    pattern_LHW = torch.randn(4, 3, 8)
    later = (".directions.", ".shared")
    state = {name: value for name, value in generator.state_dict().items() if not any(part in name for part in later)}
    state["expander.corrections"] = torch.stack([torch.zeros(4, 3, 8), pattern_LHW, *torch.zeros(4, 4, 3, 8)])
    again = HyperConvGenerator(generator.config, device="meta")  # as bundles are loaded
    again.load_state_dict(state, assign=True)
    condition_BPD = 5 * torch.stack([task[:8] for task in prompts_of(3, seed=2)])
    feature_B = again.expander.features(condition_BPD.mean(1) - fit.center_D)[:, 0]
    found_BNW = again(condition_BPD) - generator(condition_BPD)
    expected_BLHW = 30 / 5 * feature_B[:, None, None, None] * pattern_LHW
    torch.testing.assert_close(found_BNW, expected_BLHW.flatten(1, 2), rtol=1e-4, atol=1e-4)


def test_directions_that_the_tasks_do_not_have_stay_zero():
    directions = PromptDirections(num_directions=3, condition_dim=2)
    assert directions(torch.ones(1, 2)).tolist() == [[0, 0, 0]]
    directions.fit(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    assert directions.axes_RD.abs().sum() == 0
    directions.fit(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    assert (directions.axes_RD.abs().sum(1) > 0).tolist() == [True, False, False]
    with pytest.raises(HyperConvError, match="NaN or infinite"):
        directions.fit(torch.tensor([[0.0, float("nan")]]))


def test_a_network_that_remembers_is_saved_and_loaded():
    generator, prompts, *_ = made(num_corrections=2)
    again = HyperConvGenerator(GeneratorConfig.from_dict(generator.config.to_dict()))
    again.load_state_dict(generator.state_dict())
    condition_BPD = torch.stack([prompts[0][:8], torch.randn(8, D)])
    assert torch.equal(again(condition_BPD), generator(condition_BPD))
    assert len(again.expander.corrections) == 2


def test_what_cannot_be_is_refused():
    with pytest.raises(HyperConvError, match="num_tasks is 3, expected 0 with the expander 'basis'"):
        GeneratorConfig(expander="basis", num_tasks=3)
    generator, prompts, rows_KSD, fit, means_KNW = made()
    with pytest.raises(HyperConvError, match="prompts are missing"):
        generator.start_from(fit, means_KNW)
    with pytest.raises(HyperConvError, match=r"prompts are of 5 task\(s\), expected num_tasks=6"):
        generator.start_from(fit, means_KNW, prompts[:-1])
    with pytest.raises(HyperConvError, match="prompts of task 0 have shape"):
        generator.start_from(fit, means_KNW, [prompts[0][:, 1:], *prompts[1:]])
    with pytest.raises(HyperConvError, match="embeddings have shape"):
        generator.start_from(fit, means_KNW, prompts, [prompts[0][:, 1:]])
    with pytest.raises(HyperConvError, match="fits are 1, expected one for each of 6"):
        generator.leave_out(list(left_out_fits(rows_KSD, fit.penalty))[:1])
    with pytest.raises(HyperConvError, match="num_tasks is 0"):
        HyperConvGenerator(GeneratorConfig(**SMALL)).leave_out([])


@pytest.mark.parametrize("num_corrections", [0, 2])
def test_what_unseen_tasks_start_from_can_be_given(num_corrections):
    _, prompts, _, fit, means_KNW = made()
    generator = HyperConvGenerator(GeneratorConfig(**SMALL, num_tasks=NUM_TASKS, num_corrections=num_corrections))
    unseen_NW = torch.randn(8, 12).T
    generator.start_from(fit, means_KNW, prompts, unseen_NW=unseen_NW)
    unseen_BPD = torch.stack([task[:8] for task in prompts_of(5, seed=2)])
    torch.testing.assert_close(generator(unseen_BPD), unseen_NW.expand(5, -1, -1), rtol=1e-5, atol=1e-5)
    generator(unseen_BPD).square().sum().backward()
    assert (generator.expander.corrections.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
    assert generator.expander.strength.grad != 0
    assert not generator.expander.shared.requires_grad
    # Of its tasks it has as many patterns as before, and they stay theirs.
    own_BNW, before_BNW = generator(torch.stack(prompts)), made()[0](torch.stack(prompts))
    torch.testing.assert_close(own_BNW, before_BNW, rtol=1e-3, atol=1e-3)
    generator.start_from(fit, means_KNW, prompts)
    torch.testing.assert_close(
        generator(unseen_BPD), mixed(fit.task_weights(unseen_BPD.mean(1)), means_KNW), rtol=1e-4, atol=1e-4
    )


def test_what_unseen_tasks_start_from_is_checked():
    generator, prompts, _, fit, means_KNW = made()
    for bad_NW in (torch.zeros(12, 7), torch.full((12, 8), torch.nan)):
        with pytest.raises(HyperConvError, match=r"tokens for unseen tasks have shape \[12, \d\], expected \[12, 8\]"):
            generator.start_from(fit, means_KNW, prompts, unseen_NW=bad_NW)
    forgetful = HyperConvGenerator(GeneratorConfig(**SMALL, num_basis=NUM_TASKS - 1))
    with pytest.raises(HyperConvError, match=r"num_tasks is 0"):
        forgetful.start_from(fit, means_KNW, unseen_NW=means_KNW[0])

"""Batches of several adapters cut into passes: every sample once, no more tokens at once than asked for."""

from hypothesis import given
from hypothesis import strategies as st
from loragen_infer.adapters.reading import Batch, num_tokens
from loragen_train.zoo.passes import Pass, passes


@given(
    lengths=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=9), max_size=9),
    max_tokens=st.integers(1, 300),
)
def test_every_sample_is_in_one_pass_and_the_budget_is_kept(lengths, max_tokens):
    found = passes(lengths, max_tokens)
    rows = [
        (adapter, row) for part in found for adapter, rows in zip(part.adapters, part.rows, strict=True) for row in rows
    ]
    assert sorted(rows) == [(adapter, row) for adapter, batch in enumerate(lengths) for row in range(len(batch))]
    for part in found:
        assert part.adapters == sorted(set(part.adapters))
        assert all(part.rows)
        of_part = [
            lengths[adapter][row] for adapter, rows in zip(part.adapters, part.rows, strict=True) for row in rows
        ]
        assert len(of_part) == 1 or len(of_part) * max(of_part) <= max_tokens
    # An adapter whose batch fits is in one pass, as a whole.
    for adapter, batch in enumerate(lengths):
        if len(batch) * max(batch) <= max_tokens:
            assert sum(adapter in part.adapters for part in found) == 1


@given(
    batches=st.lists(st.tuples(st.integers(0, 300), st.lists(st.integers(1, 150), min_size=1, max_size=9)), max_size=9),
    max_tokens=st.integers(1, 2000),
)
def test_the_budget_is_kept_where_beginnings_are_read_once(batches, max_tokens):
    lengths, num_common = [[common + rest for rest in rests] for common, rests in batches], [one for one, _ in batches]
    found = passes(lengths, max_tokens, num_common=num_common)
    rows = [(adapter, row) for part in found for adapter, rows in zip(*part, strict=True) for row in rows]
    assert sorted(rows) == [(adapter, row) for adapter, batch in enumerate(lengths) for row in range(len(batch))]
    for part in found:
        of_part = [[lengths[adapter][row] for row in rows] for adapter, rows in zip(*part, strict=True)]
        common = [num_common[adapter] for adapter in part.adapters]
        read = [Batch(len(batch), max(batch), one) for batch, one in zip(of_part, common, strict=True)]
        assert sum(map(len, of_part)) == 1 or num_tokens(read) <= max_tokens


def test_what_fits_goes_at_once_and_in_the_order_of_the_adapters():
    assert passes([[3, 1], [5, 5], [2, 2]], 30) == [Pass(adapters=[0, 1, 2], rows=[[0, 1], [0, 1], [0, 1]])]


def test_adapters_of_like_length_stand_together_and_a_long_batch_is_cut_up_by_length():
    found = passes([[2, 2], [9, 9], [3, 1], [9, 8], [20, 1, 40, 2]], 36)
    assert found == [
        Pass(adapters=[4], rows=[[2]]),
        Pass(adapters=[4], rows=[[0]]),
        Pass(adapters=[4], rows=[[3, 1]]),
        Pass(adapters=[1, 3], rows=[[0, 1], [0, 1]]),
        Pass(adapters=[0, 2], rows=[[0, 1], [0, 1]]),
    ]


def test_no_adapters_need_no_pass():
    assert passes([], 10) == []

"""Statistics: those of torch over all checkpoints at once, and z-scores that come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lora_tokenizer import LoraTokenizerError, TokenStats
from safetensors.torch import save_file


@pytest.fixture
def tokens() -> torch.Tensor:
    tokens_MNW = torch.randn(7, 5, 4) * torch.logspace(-4, 2, 4) + 1000
    tokens_MNW[:, 2] = 3.5
    return tokens_MNW


def test_they_are_those_of_all_tokens_at_once(tokens: torch.Tensor) -> None:
    stats = TokenStats.from_tokens(iter(tokens), floor=1e-5)
    exact = tokens.double()
    torch.testing.assert_close(stats.mean, exact.mean(0).float())
    torch.testing.assert_close(stats.std, exact.std(0, unbiased=False).clamp(min=1e-5).float())
    assert stats.count == 7


@settings(max_examples=300, deadline=None)
@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5)),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([1e-6, 1e-3, 1.0]),
)
def test_they_are_those_of_numpy_in_float64(values: np.ndarray, dtype: torch.dtype, floor: float) -> None:
    tokens_MNW = torch.from_numpy(values).to(dtype)
    exact = tokens_MNW.double().numpy()
    stats = TokenStats.from_tokens(iter(tokens_MNW), floor=floor)
    mean, std = exact.mean(axis=0), exact.std(axis=0)
    # float64 loses what lies 16 digits below the largest value, float32 what lies below its least number
    lost = 1e-13 * np.abs(exact).max() + 1e-44
    np.testing.assert_allclose(stats.mean.numpy(), mean, rtol=1e-6, atol=lost)
    np.testing.assert_allclose(stats.std.numpy(), np.maximum(std, floor), rtol=1e-6, atol=lost)

    clipped = np.maximum(std, floor)
    z = (exact - mean) / clipped
    np.testing.assert_allclose(
        stats.normalize(tokens_MNW).numpy(), z, rtol=1e-4, atol=1e-6 * (1 + np.abs(exact).max() / floor)
    )

    spread = np.where(stats.std.numpy() > np.float32(floor), stats.std.numpy(), 0).astype(np.float64)
    rms = np.sqrt((spread**2).mean(axis=1))
    expected = rms / rms.mean() if rms.any() else np.ones_like(rms)
    np.testing.assert_allclose(stats.importance().numpy(), expected, rtol=1e-6)
    assert stats.importance().mean().item() == pytest.approx(1)


def test_many_checkpoints_far_from_zero_lose_nothing() -> None:
    """Where the textbook formula (mean of squares less square of mean) has no digit left."""
    rng = np.random.default_rng(0)
    exact = 1e8 + rng.standard_normal((2000, 3, 4)) * 1e-4
    stats = TokenStats.from_tokens(torch.from_numpy(tokens_NW) for tokens_NW in exact)
    np.testing.assert_allclose(stats.std.numpy(), exact.std(axis=0), rtol=1e-4)


def test_z_scores_come_back_and_constants_stay(tokens: torch.Tensor) -> None:
    stats = TokenStats.from_tokens(tokens)
    z = stats.normalize(tokens)
    torch.testing.assert_close(stats.denormalize(z), tokens)
    assert not z[:, 2].any()
    torch.testing.assert_close(z[:, 0, 3].std(unbiased=False), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_importance_has_mean_one_and_follows_the_spread() -> None:
    tokens = torch.randn(50, 4, 8) * torch.tensor([1.0, 2.0, 0.0, 5.0]).view(4, 1)
    weight = TokenStats.from_tokens(tokens).importance()
    assert weight.mean().item() == pytest.approx(1)
    assert weight[2] == 0
    assert weight[0] < weight[1] < weight[3]
    assert TokenStats.from_tokens([tokens[0]]).importance().tolist() == [1] * 4


def test_saving(tokens: torch.Tensor, tmp_path: Path) -> None:
    stats = TokenStats.from_tokens(tokens, floor=0.5)
    loaded = TokenStats.load(stats.save(tmp_path / "s.safetensors"))
    again = TokenStats.from_tensors({**stats.to_tensors(), "other": torch.zeros(1)})
    for other in (loaded, again):
        assert torch.equal(other.mean, stats.mean)
        assert torch.equal(other.std, stats.std)
        assert (other.count, other.floor) == (7, 0.5)


def test_what_makes_no_sense_is_refused(tokens: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(LoraTokenizerError, match="no tokens"):
        TokenStats.from_tokens([])
    with pytest.raises(LoraTokenizerError, match="checkpoint 1"):
        TokenStats.from_tokens([tokens[0], tokens[0, :2]])
    with pytest.raises(LoraTokenizerError, match="NaN"):
        TokenStats.from_tokens([tokens[0] * float("nan")])
    with pytest.raises(LoraTokenizerError, match="do not fit the statistics"):
        TokenStats.from_tokens(tokens).normalize(tokens[:, :2])
    (tmp_path / "x").write_bytes(b"x")
    for path in (tmp_path / "x", tmp_path / "nowhere"):
        with pytest.raises(LoraTokenizerError, match=path.name):
            TokenStats.load(path)


@pytest.mark.parametrize("count", [float("nan"), float("inf"), -3.0, 2.5, 0.0])
def test_a_count_that_is_none_is_refused(count: float, tokens: torch.Tensor, tmp_path: Path) -> None:
    tensors = TokenStats.from_tokens(tokens).to_tensors() | {"count": torch.tensor(count)}
    save_file(tensors, tmp_path / "s.safetensors")
    with pytest.raises(LoraTokenizerError, match=r"s\.safetensors .* count"):
        TokenStats.load(tmp_path / "s.safetensors")

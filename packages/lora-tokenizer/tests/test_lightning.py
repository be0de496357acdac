"""Checkpoints that Lightning's Trainer writes while it trains real PEFT models: what comes out is what PEFT saves."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, TokenLayout, read_adapter, same_bits
from peft import LoraConfig, PeftModel, get_peft_model

TARGETS = ["q_proj", "v_proj"]


class Wrapper(torch.nn.Module):
    """A module tree of the training code's own around the PEFT model."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Trained(lightning.LightningModule):
    """Trains the LoRA of a PEFT model; keyword arguments become the checkpoint's hyper-parameters."""

    def __init__(self, model: Any, place: str = "model", **hyper_parameters: Any) -> None:
        super().__init__()
        self.save_hyperparameters(hyper_parameters)
        self.peft_model = [model]  # in a list, so that only `place` puts it into the module tree
        if place == "model":
            self.model = model
        elif place == "nested":
            self.student = Wrapper(Wrapper(model))
        else:
            self.net = torch.compile(model)

    def training_step(self, ids: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.peft_model[0](ids, labels=ids).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.1)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def train(model: PeftModel, path: Path, **options: Any) -> PeftModel:
    """Two steps, and the checkpoint: weights, optimizer state, hyper-parameters and loops."""
    torch.manual_seed(0)
    module = Trained(model, **options)
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path.parent,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.randint(0, 32, (4, 8)), batch_size=2))
    trainer.save_checkpoint(path)
    return model


def assert_what_peft_saves(adapter: LoraAdapter, model: PeftModel, folder: Path) -> None:
    model.save_pretrained(str(folder))
    saved = read_adapter(folder)
    assert same_bits(adapter, saved)
    assert [adapter.scaling(module) for module in adapter.modules] == [saved.scaling(m) for m in saved.modules]
    layouts = [TokenLayout.from_adapter(each, token_dim=8, max_tokens="auto") for each in (adapter, saved)]
    assert torch.equal(layouts[0].encode(adapter), layouts[1].encode(saved))


@pytest.mark.parametrize("place", ["model", "nested", "compiled"])
def test_whatever_stands_before_the_names(place: str, tmp_path: Path, tiny_llama: Callable[..., Any]) -> None:
    config = {"r": 4, "lora_alpha": 16, "target_modules": TARGETS, "use_rslora": True}
    model = get_peft_model(tiny_llama(2), LoraConfig(**config))
    train(model, tmp_path / "last.ckpt", place=place, lora=config, learning_rate=0.1)
    names = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    before = {"model": "model.", "nested": "student.inner.inner.", "compiled": "net._orig_mod."}[place]
    assert all(name.startswith(f"{before}base_model.model.") for name in names)
    adapter = read_adapter(tmp_path / "last.ckpt")
    assert adapter.config.use_rslora
    assert adapter.config.target_modules == ("q_proj", "v_proj")
    assert_what_peft_saves(adapter, model, tmp_path / "peft")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.1\..*": 3}},
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1\..*q_proj"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
    ],
    ids=["plain", "dora", "patterns", "all-linear", "regex", "embedding", "some layers"],
)
def test_a_lora_config_among_the_hyper_parameters(
    settings: dict[str, Any], tmp_path: Path, tiny_llama: Callable[..., Any]
) -> None:
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": TARGETS, **settings})
    model = get_peft_model(tiny_llama(2), config)
    train(model, tmp_path / "last.ckpt", peft_config=config, seed=3)
    assert_what_peft_saves(read_adapter(tmp_path / "last.ckpt"), model, tmp_path / "peft")


def test_what_is_not_among_them_is_given(tmp_path: Path, tiny_llama: Callable[..., Any]) -> None:
    config = LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS)
    model = get_peft_model(tiny_llama(2), config)
    train(model, tmp_path / "last.ckpt", learning_rate=0.1)
    with pytest.raises(LoraTokenizerError, match=r"last\.ckpt: lora_alpha is missing .* pass lora_alpha="):
        read_adapter(tmp_path / "last.ckpt")
    assert_what_peft_saves(read_adapter(tmp_path / "last.ckpt", lora_alpha=12), model, tmp_path / "peft")


def test_one_of_two_adapters(tmp_path: Path, tiny_llama: Callable[..., Any]) -> None:
    model = get_peft_model(tiny_llama(2), LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS), "first")
    model.add_adapter("second", LoraConfig(r=2, lora_alpha=12, target_modules=TARGETS, init_lora_weights=False))
    train(model, tmp_path / "last.ckpt", lora_alpha=12)
    with pytest.raises(LoraTokenizerError, match=r"2 adapters \(first, second\)"):
        read_adapter(tmp_path / "last.ckpt")
    for name in ("first", "second"):
        model.save_pretrained(str(tmp_path / "peft"), selected_adapters=[name])
        saved = read_adapter(tmp_path / "peft" / name)
        assert same_bits(read_adapter(tmp_path / "last.ckpt", adapter_name=name), saved)


def test_modules_to_save_are_refused(tmp_path: Path, tiny_llama: Callable[..., Any]) -> None:
    config = LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS, modules_to_save=["lm_head"])
    train(get_peft_model(tiny_llama(2), config), tmp_path / "last.ckpt", peft_config=config)
    with pytest.raises(LoraTokenizerError, match="modules_to_save"):
        read_adapter(tmp_path / "last.ckpt")

"""Proves that an adapter works on its base model: every tensor has its place, no value is broken, and it acts.

Each check stands for a way in which PEFT loads an adapter without a word and the model then answers as if there were
none.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, read_adapter

from loragen_infer.adapters.attach import adapter_attached
from loragen_infer.adapters.vllm_rules import VllmReport, check_vllm
from loragen_infer.errors import LoragenInferError
from loragen_infer.models.base_model import load_base_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Check", "VerifyReport", "format_report", "verify_adapter"]

_PROBE = "The capital of France is"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    """What, in a few words."""
    passed: bool | None
    """None: an earlier failure left nothing to look at."""
    detail: str
    """What was found."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Everything found out about an adapter."""

    adapter: str
    """Where it lies."""
    base_model: str
    """What it was checked against."""
    num_modules: int
    """Adapted modules."""
    num_parameters: int
    """Values in its tensors."""
    checks: tuple[Check, ...]
    """In the order in which they were made."""
    vllm: VllmReport | None
    """What vLLM would say, which decides nothing; None: the adapter cannot be read."""

    @property
    def passed(self) -> bool:
        """Whether every check was made and passed."""
        return all(check.passed is True for check in self.checks)


def verify_adapter(
    path: Path,
    *,
    base_model: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    device_map: str | None = None,
) -> VerifyReport:
    """Check the adapter folder ``path`` against ``base_model``, or against the one that it names.

    ``dtype``, ``device`` and ``device_map`` are those of :func:`loragen_infer.load_base_model`.

    Raises:
        LoragenInferError: There is no adapter, or no base model can be loaded.
    """
    if not path.exists():
        raise LoragenInferError(f"The adapter {path} does not exist; give a PEFT adapter folder.")
    try:
        adapter = read_adapter(path)
    except LoraTokenizerError as error:
        readable = Check(name="readable", passed=False, detail=str(error))
        rest = tuple(Check(name=name, passed=None, detail="not looked at") for name in ("fits", "not zero", "acts"))
        return VerifyReport(
            adapter=str(path),
            base_model=base_model or "",
            num_modules=0,
            num_parameters=0,
            checks=(readable, *rest),
            vllm=None,
        )
    name = base_model or adapter.config.base_model_name_or_path
    if not name:
        raise LoragenInferError(f"The adapter {path} names no base model; give --base-model.")
    model, tokenizer = load_base_model(name, dtype=dtype, device=device, device_map=device_map)
    readable = Check(
        name="readable", passed=True, detail=f"{len(adapter.tensors)} tensors in pairs, all values are finite"
    )
    fits = _check_places(model, adapter)
    acts = Check(name="acts", passed=None, detail="not looked at, since the adapter does not fit")
    if fits.passed:
        acts = _check_effect(model, tokenizer, adapter)
    return VerifyReport(
        adapter=str(path),
        base_model=name,
        num_modules=len(adapter.modules),
        num_parameters=adapter.num_parameters,
        checks=(readable, fits, _check_not_zero(adapter), acts),
        vllm=check_vllm(adapter),
    )


def format_report(report: VerifyReport) -> str:
    """Return ``report`` as lines of text."""
    signs = {True: "ok", False: "FAIL", None: "-"}
    lines = [
        f"{report.adapter}: {report.num_modules} modules, {report.num_parameters:,} parameters, "
        f"against {report.base_model or 'nothing'}"
    ]
    lines += [f"  {signs[check.passed]:<5}{check.name:<10}{check.detail}" for check in report.checks]
    if report.vllm is not None:
        takes = "would not load it" if report.vllm.refused else f"--max-lora-rank {report.vllm.max_lora_rank}"
        remarks = "; ".join((*report.vllm.refused, *report.vllm.warnings))
        lines.append(f"  {'':<5}{'vLLM':<10}{takes}{': ' if remarks else ''}{remarks}")
    return "\n".join(lines)


def _check_places(model: "PreTrainedModel", adapter: LoraAdapter) -> Check:
    """Every tensor meets a module of the right shape, and PEFT adapts no module that has no tensors."""
    try:
        with adapter_attached(model, adapter):
            pass
    except LoragenInferError as error:
        return Check(name="fits", passed=False, detail=str(error))
    return Check(name="fits", passed=True, detail="every tensor has a module of its shape, every module its tensors")


def _check_not_zero(adapter: LoraAdapter) -> Check:
    zero, norms = [], []
    for name in adapter.modules:
        a_ri, b_or = (factor.double() for factor in adapter.factors(name))
        # |B A|^2 = trace((B'B)(AA')), without the [out, in] product.
        norm = adapter.scaling(name) * float(torch.sum((b_or.T @ b_or) * (a_ri @ a_ri.T)).clamp(min=0).sqrt())
        norms.append(norm)
        if norm == 0:
            zero.append(name)
    if zero:
        return Check(name="not zero", passed=False, detail=f"ΔW is zero in {len(zero)} modules, such as {zero[0]}")
    return Check(name="not zero", passed=True, detail=f"|ΔW| from {min(norms):.3g} to {max(norms):.3g} per module")


def _check_effect(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", adapter: LoraAdapter) -> Check:
    inputs = tokenizer(_PROBE, return_tensors="pt").to(model.device)
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        before = model(**inputs).logits.float()
        with adapter_attached(model, adapter) as adapted:
            after = adapted(**inputs).logits.float()
    if not torch.isfinite(after).all():
        return Check(name="acts", passed=False, detail="the adapted model's logits are NaN or Inf")
    change = float((after - before).abs().max())
    if change == 0:
        return Check(name="acts", passed=False, detail="the logits of the base model do not change at all")
    return Check(name="acts", passed=True, detail=f"logits change by up to {change:.3g} (on {_PROBE!r})")

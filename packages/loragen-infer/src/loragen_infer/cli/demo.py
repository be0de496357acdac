"""The command ``loragen-infer demo``."""

from loragen_infer.cli.command_line import Command
from loragen_infer.demo.config import DemoConfig

__all__ = ["DEMO"]


def _demo(config: DemoConfig) -> None:
    from loragen_infer.demo.run import run_demo

    run_demo(config)


DEMO = Command(
    name="demo",
    help="a page in the browser that makes adapters and shows what they do",
    description="Serve a page: prompts in, adapter out, base and adapted model side by side, and what was changed.",
    example="loragen-infer demo --model experiments/zoo_20260101_120000",
    run=_demo,
    config_class=DemoConfig,
)

"""The command ``loragen-train joint``."""

from loragen_infer.cli.command_line import Command

from loragen_train.configs.joint import JointConfig

__all__ = ["JOINT"]


def _joint(config: JointConfig) -> None:
    from loragen_train.zoo.add_joint import add_joint

    print(add_joint(config))


JOINT = Command(
    name="joint",
    help="train one adapter on all training tasks of a zoo",
    description="Train the joint adapter of a zoo that is there, such as one of imported adapters: fit starts tasks "
    "never seen from it. It needs samples with responses, and goes on where it was interrupted. Prints its folder.",
    example="loragen-train joint --zoo zoo --steps 1000",
    run=_joint,
    config_class=JointConfig,
)

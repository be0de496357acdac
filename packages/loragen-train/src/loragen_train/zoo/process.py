"""The place of this process among those that collect one zoo: its device, and its share of the tasks."""

import os

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from loragen_train.configs.collect import CollectConfig, CollectTask

__all__ = ["fabric_of_process", "share_of_tasks"]

# Rank and number of processes, as torchrun and srun tell them. SLURM_NTASKS is not that of srun: a batch script has it
# too, with the rank 0, and what it starts without srun is alone.
_RANKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))


def share_of_tasks(config: CollectConfig) -> list[CollectTask]:
    """Return the tasks that this process is to see to: those of ``config.shard``, or of its rank."""
    part, whole = 0, 1
    if config.shard is not None:
        part, whole = (int(number) for number in config.shard.split("/"))
        part -= 1
    else:
        rank = next((names for names in _RANKS if all(name in os.environ for name in names)), None)
        if rank is not None:
            part, whole = (int(os.environ[name]) for name in rank)
    return config.tasks[part::whole]


def fabric_of_process() -> Fabric:
    """Return what moves, steps and saves on the one device of this process.

    Processes share a zoo by tasks, never a batch; so none waits for another, and each is the only one of its Fabric.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    fabric = Fabric(accelerator="auto", devices=1, plugins=[LightningEnvironment()])
    if fabric.device.type != "cpu" and local_rank:
        # SLURM may show each process a single GPU, which is its first then.
        device = local_rank % torch.accelerator.device_count()
        fabric = Fabric(accelerator="auto", devices=[device], plugins=[LightningEnvironment()])
    return fabric

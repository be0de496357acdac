"""Where a training runs: its devices as Lightning counts them, errors in words of its own, and their use."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from loragen_train import LoragenTrainError
from loragen_train.configs.fit import DataConfig, FitConfig, ModelConfig
from loragen_train.configs.objectives import LmConfig
from loragen_train.configs.training import TrainingConfig
from loragen_train.training.callbacks import MachineUse
from loragen_train.training.dry_run import dry_run
from loragen_train.training.fit import fit
from loragen_train.training.trainer import check_hardware, make_trainer

SLURM = {"JOB_ID": "42", "JOB_NAME": "fit", "NTASKS": "4", "NTASKS_PER_NODE": "4", "NODEID": "0"}


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which Lightning sees four; nothing is put there."""
    monkeypatch.setattr("lightning.pytorch.accelerators.cuda.num_cuda_devices", lambda: 4)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda.num_cuda_devices", lambda: 4)
    monkeypatch.setattr("lightning.fabric.utilities.device_parser._get_all_available_gpus", lambda **_: [0, 1, 2, 3])


def config_of(**training: object) -> FitConfig:
    return FitConfig(data=DataConfig(zoo="zoo"), training=TrainingConfig(**{"accelerator": "gpu", **training}))


def in_slurm(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in {**SLURM, **variables}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.mark.parametrize(
    ("devices", "variables", "expected"),
    [
        (1, {}, "cuda:0"),
        ("2,", {}, "cuda:2"),
        (4, {"LOCAL_RANK": "3"}, "cuda:3"),
        ("2,3", {}, "cuda:2"),
        ("2,3", {"LOCAL_RANK": "1"}, "cuda:3"),
        (4, {"SLURM_LOCALID": "2", "SLURM_PROCID": "2"}, "cuda:2"),
    ],
)
def test_the_device_of_a_process_is_the_one_that_lightning_trains_on(
    four_gpus, monkeypatch, devices, variables, expected
):
    if "SLURM_LOCALID" in variables:
        in_slurm(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    strategy = "auto" if devices in (1, "2,") else "ddp"
    assert check_hardware(config_of(devices=devices, strategy=strategy)).device == torch.device(expected)


@pytest.mark.parametrize("objective", ["reconstruction", "lm"])
@pytest.mark.parametrize("run", [fit, dry_run])
def test_base_model_and_encoder_go_where_the_training_is(make, tiny_lm, tmp_path, monkeypatch, objective, run):
    make.manifest(tmp_path / "zoo", base_model=tiny_lm, spelling={"held_out": True, "adapters": []})
    config = FitConfig(
        data=DataConfig(zoo=str(tmp_path / "zoo"), cache_dir=str(tmp_path / "cache")),
        model=ModelConfig(output_dim=16),
        training=TrainingConfig(accelerator="cpu", objective=objective, lm=LmConfig(precision="fp32")),
        output_dir=str(tmp_path / "experiments"),
    )
    seen = []

    def load_base(*args, device, **kwargs):
        seen.append(torch.device(device))
        return SimpleNamespace(tokenizer=None, model=None, mean_nll=lambda *_: [])

    def load_encoder(*args, device, **kwargs):
        seen.append(torch.device(device))
        raise NotImplementedError("nothing can be put on a device that is not there")

    there = torch.device("meta")
    monkeypatch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.root_device", there)
    monkeypatch.setattr("loragen_train.zoo.frozen.FrozenModel.load", load_base)
    monkeypatch.setattr("loragen_train.training.base_model.AdapterTokens.check_fits", lambda *_: None)
    monkeypatch.setattr("loragen_train.training.unseen.tokenize_example", lambda *_: None)
    monkeypatch.setattr("loragen_train.training.build.load_encoder", load_encoder)
    with pytest.raises(NotImplementedError):
        run(config)
    assert seen == [there, there]


@pytest.mark.parametrize(
    ("devices", "num_nodes", "expected"), [(1, 1, False), ("1", 1, False), (2, 1, True), (1, 2, True), ("1", 2, True)]
)
def test_several_processes_with_a_trained_encoder_look_for_unused_parameters(devices, num_nodes, expected):
    config = config_of(accelerator="cpu", devices=devices, num_nodes=num_nodes)
    config = replace(config, model=ModelConfig(freeze_text_encoder=False))
    trainer = make_trainer(config, logger=False, enable_checkpointing=False)
    options = getattr(trainer.strategy, "_ddp_kwargs", {})
    assert options.get("find_unused_parameters", False) is expected


def test_a_slurm_job_that_lightning_refuses_is_one_sentence(monkeypatch):
    in_slurm(monkeypatch, PROCID="0", LOCALID="0")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(LoragenTrainError, match=r"is nothing that Lightning can use here: .*--ntasks-per-node=4") as no:
        check_hardware(config_of(accelerator="cpu"))
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("tells", [True, False])
def test_a_gpu_whose_driver_tells_no_use_trains_all_the_same(monkeypatch, caplog, tells):
    caplog.set_level("INFO")
    asked, logged = [], []

    def utilization(device):
        asked.append(device)
        if not tells:
            raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
        return 40

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**21)
    trainer = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])])
    module = SimpleNamespace(device=torch.device("cuda:1"), log_dict=lambda values, **_: logged.append(values))
    use = MachineUse()
    for _ in range(2):
        use.on_train_epoch_start(trainer, module)
        use.on_train_epoch_end(trainer, module)
    assert [values.get("gpu_percent") for values in logged] == ([40.0] * 2 if tells else [None] * 2)
    assert [values["gpu_memory_mib"] for values in logged] == [2.0, 2.0]
    assert len(asked) == (2 if tells else 1)
    assert caplog.text.count("gpu_percent is left out") == (not tells)

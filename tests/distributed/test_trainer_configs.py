"""Every trainer config fits: several devices as two machines of torchrun, one by the command line."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trainer_configs_worker
import yaml
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from lit_kd.cli import main

CONFIGS = trainer_configs_worker.CONFIGS


@pytest.mark.dist
@pytest.mark.slow
def test_two_machines_of_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    command += ["--master_addr=127.0.0.1", f"--master_port={find_free_network_port()}"]
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent), "TENSORBOARD_NO_TF": "1"}
    nodes = [
        subprocess.Popen(
            [*command, f"--node_rank={rank}", trainer_configs_worker.__file__, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        outputs = [node.communicate(timeout=300)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    first, second = (torch.load(tmp_path / f"results{rank}.pt") for rank in range(2))
    line = "batch 64 x 2 devices x 1 accumulated = 128 samples an optimizer step; learning rate 0.05"
    for name in trainer_configs_worker.ON_CPU:
        assert first[name] == [True, 2, 2, [line]], name
        assert second[name] == [True, 2, 2, []], name  # the line is rank 0's alone
        assert (tmp_path / name / "digits/teacher/export/model.safetensors").is_file()


def test_one_gpu(tmp_path: Path) -> None:
    """On a CPU, and the compiler as far as it needs no C++; the callbacks of the first file stay."""
    words = ["fit", "-c", str(CONFIGS / "mcmi/digits_teacher.yaml"), "-c", str(CONFIGS / "trainer/gpu.yaml")]
    words += ["--trainer.accelerator=cpu", "--trainer.callbacks.backend=aot_eager", "--trainer.max_epochs=1"]
    words += ["--trainer.limit_train_batches=1", f"--trainer.logger.save_dir={tmp_path}"]
    main(words)
    saved = yaml.safe_load((tmp_path / "digits/teacher/config.yaml").read_text())["trainer"]
    names = [one["class_path"].rpartition(".")[2] for one in saved["callbacks"]]
    assert names == ["ExportStudent", "RunSummary", "ChannelsLast", "CompileNetworks"]
    assert saved["precision"] == "bf16-mixed"
    assert (tmp_path / "digits/teacher/export/model.safetensors").is_file()


def commands() -> list[str]:
    """What the page hands to torchrun or srun, behind the name of the program."""
    blocks = re.findall(r"```shell\n(.*?)```", (CONFIGS.parent / "docs/multi_gpu.md").read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace(" &\n", "\n").splitlines()
    return [re.split(r"lit[-_]kd ", line)[1].split(" #")[0] for line in lines if re.search(r"lit[-_]kd ", line)]


def test_commands_of_the_page_name_files_and_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(commands()) == 4
    for command in commands():
        words = [str(CONFIGS.parent / word) if word.startswith("configs/") else word for word in shlex.split(command)]
        with pytest.raises(SystemExit) as stop:
            main([*words, "--print_config"])
        assert stop.value.code == 0, capsys.readouterr().err


def test_each_config_is_tried() -> None:
    found = {path.stem for path in (CONFIGS / "trainer").glob("*.yaml")}
    assert found == {*trainer_configs_worker.ON_CPU, "gpu", "cpu"}  # cpu: what all other tests do

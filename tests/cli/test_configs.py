"""Every file in configs/ fits for one step on tiny files in the real format of its data."""

from pathlib import Path

import pytest
import torch
import yaml
from datamodules.tiny_files import CIFAR10_CLASSES, WNIDS, class_folders, tiny_imagenet, write

from lit_kd.cli import main
from lit_kd.models import vision_model

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENTS = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "trainer")
TINY = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def tiny_data(data: dict, folder: Path) -> tuple[list[str], int]:
    """Overrides that point the config at tiny files, and the number of their classes."""
    name = data["class_path"]
    if name == "DigitsDataModule":
        return ["--data.init_args.train_fraction=0.01"], 10
    words = [f"--data.init_args.root={folder}", "--data.init_args.batch_size=4", "--data.init_args.num_workers=0"]
    if name == "TinyImageNetDataModule":
        write(folder, tiny_imagenet(""))
        return words, len(WNIDS)
    classes = {
        "CIFAR10DataModule": CIFAR10_CLASSES,
        "CIFAR100DataModule": [f"class{i:02}" for i in range(100)],
        "ImageFolderDataModule": ["cat", "dog", "owl"],
    }[name]
    for split in ("train", "test" if name.startswith("CIFAR") else "val"):
        write(folder / split, class_folders(classes))
    if name.startswith("CIFAR"):
        words.append("--data.init_args.download=false")
    return words, len(classes)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_fits(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(path.read_text())
    words, num_classes = tiny_data(config["data"], tmp_path / "data")
    if path.parent.name == "obow":
        words += ["--model.init_args.num_words=64", "--trainer.limit_val_batches=2", "--trainer.num_sanity_val_steps=0"]
        if "val_fraction" in config["data"]["init_args"]:
            words.append("--data.init_args.val_fraction=0.5")
    elif config["data"]["class_path"] == "ImageFolderDataModule":
        words.append("--data.init_args.image_size=64")
    for role in ("network", "student", "teacher"):
        network = config["model"]["init_args"].get(role)
        if network is None:
            continue
        words.append(f"--model.init_args.{role}.init_args.num_classes={num_classes}")
        if network["init_args"].pop("pretrained", False):
            words.append(f"--model.init_args.{role}.init_args.pretrained=false")
        if "checkpoint" in network["init_args"]:
            torch.save(vision_model(network["init_args"]["name"], num_classes).state_dict(), "teacher.pt")
            words.append(f"--model.init_args.{role}.init_args.checkpoint=teacher.pt")
    file = tmp_path / "config.yaml"
    for callback in config["trainer"]["callbacks"]:
        if "reference" in callback.get("init_args", {}):
            callback["init_args"]["reference"]["init_args"]["checkpoint"] = "teacher.pt"
    file.write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(file), *TINY, *words])
    exported = list((tmp_path / "runs").rglob("model.safetensors"))
    assert len(exported) == 1 and list((tmp_path / "runs").rglob("summary.md"))


def test_stages_find_each_other() -> None:
    """The checkpoint that a config reads is the export that another config of the same data writes."""
    written = set()
    for path in EXPERIMENTS:
        logger = yaml.safe_load(path.read_text())["trainer"]["logger"]["init_args"]
        written.add(f"{logger['save_dir']}/{logger['name']}/{logger['version']}/export/model.safetensors")
    for path in EXPERIMENTS:
        for network in yaml.safe_load(path.read_text())["model"]["init_args"].values():
            checkpoint = network.get("init_args", {}).get("checkpoint") if isinstance(network, dict) else None
            assert checkpoint is None or checkpoint in written, f"{path.name} reads {checkpoint}"

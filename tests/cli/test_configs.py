"""Every file in configs/ fits for one step on tiny files in the real format of its data."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from datamodules.tiny_files import CIFAR10_CLASSES, WNIDS, class_folders, tiny_imagenet, write

from lit_kd.cli import main
from lit_kd.models import vision_model

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENTS = sorted(
    path
    for path in CONFIGS.glob("*/*.yaml")
    if path.parent.name not in ("trainer", "minilm", "ssb", "mgsr", "synthetic")
)
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


def tiny_network(network: dict, file: str, num_classes: int) -> None:
    """Change a network of a config: random weights of the right number of classes, in ``file`` if it reads one."""
    settings = network["init_args"]
    if network["class_path"].endswith("torchvision_model"):
        settings.update(name="resnet18", weights=None, size=32)
        settings.pop("wnids", None)
    if settings.get("num_classes") != 0:
        settings["num_classes"] = num_classes
    settings.pop("pretrained", None)
    if "checkpoint" in settings:
        settings["checkpoint"] = file
        torch.save(vision_model(**{**settings, "checkpoint": None}).state_dict(), file)


def tiny_run(path: Path, folder: Path) -> list[str]:
    """Words that run the config with networks and attacks made quick, on tiny files."""
    config = yaml.safe_load(path.read_text())
    words, num_classes = tiny_data(config["data"], folder / "data")
    if config["model"]["class_path"] == "OBoWModule":
        words += ["--model.init_args.num_words=64", "--trainer.limit_val_batches=2", "--trainer.num_sanity_val_steps=0"]
        if "val_fraction" in config["data"]["init_args"]:
            words.append("--data.init_args.val_fraction=0.5")
    elif config["data"]["class_path"] == "ImageFolderDataModule":
        words.append("--data.init_args.image_size=64")
    if config["data"].get("init_args", {}).pop("label_space", None):  # the wnids of tiny files are none of ImageNet's
        assert config["data"]["class_path"] == "TinyImageNetDataModule"
    networks = {role: config["model"]["init_args"].get(role) for role in ("network", "student", "teacher", "backbone")}
    for callback in config["trainer"]["callbacks"]:
        settings = callback.get("init_args", {})
        networks |= {role: settings.get(role) for role in ("reference", "undefended")}
        if callback["class_path"] == "RobustnessReport":
            protocol = settings.setdefault("protocol", {})
            names = protocol.get(
                "attacks", ["noise", "fgsm_naive", "pgd_naive", "pgd_T", "pgd_margin", "apgd_dlr", "cw"]
            )
            protocol.update(attacks=names, steps=1, cw={"steps": 1, "search_steps": 1})
            settings["max_samples"] = 4
    for role, network in networks.items():
        if network is not None:
            tiny_network(network, f"{role}.pt", num_classes)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["-c", str(file), *TINY, *words]


FITTED = [path for path in EXPERIMENTS if "max_epochs" in path.read_text()]
ATTACKED = [path for path in EXPERIMENTS if "RobustnessReport" in path.read_text()]


def identify(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", FITTED, ids=identify)
def test_config_fits(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", *tiny_run(path, tmp_path)])
    exported = list((tmp_path / "runs").rglob("model.safetensors"))
    assert len(exported) == 1 and list((tmp_path / "runs").rglob("summary.md"))


@pytest.mark.parametrize("path", ATTACKED, ids=identify)
def test_config_tests_and_reports_robustness(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["test", *tiny_run(path, tmp_path), "--trainer.limit_test_batches=1"])
    (report,) = (tmp_path / "runs").rglob("robustness.json")
    assert {"module"} <= json.loads(report.read_text())["networks"].keys()


def test_stages_find_each_other() -> None:
    """The checkpoint that a config reads is the export that another config of the same data writes."""
    written = set()
    for path in FITTED:
        logger = yaml.safe_load(path.read_text())["trainer"]["logger"]["init_args"]
        written.add(f"{logger['save_dir']}/{logger['name']}/{logger['version']}/export/model.safetensors")
    for path in FITTED:
        for network in yaml.safe_load(path.read_text())["model"]["init_args"].values():
            checkpoint = network.get("init_args", {}).get("checkpoint") if isinstance(network, dict) else None
            assert checkpoint is None or checkpoint in written, f"{path.name} reads {checkpoint}"

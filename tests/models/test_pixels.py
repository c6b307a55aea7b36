"""Networks of the Tiny-ImageNet study: the resize, the normalisation and the label protocols inside the network."""

import hashlib
import re
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from datamodules import tiny_files
from datamodules.tiny_files import write
from shared_data import DATA as SHARED
from torch import nn
from torchvision import models
from torchvision.transforms.v2 import functional as transforms
from toy import toy_network

from lit_kd.attacks import fgsm, pgd
from lit_kd.cli import LitKDCLI, main
from lit_kd.datamodules import TinyImageNetDataModule
from lit_kd.methods.classifier import check_pixels
from lit_kd.models import PixelModel, load_checkpoint, load_exported, save_exported, torchvision_model, vision_model
from lit_kd.models.factory import Normalize
from lit_kd.models.pixels import imagenet_labels, imagenet_names, imagenet_wnids, read_wnids

IMAGE = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LABEL = torch.tensor([0, 1, 2, 0])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def resnet18_file(folder: Path, version: Any, monkeypatch: pytest.MonkeyPatch, named: str | None = None) -> Path:
    """Random weights as if they were torchvision's: a file named after its hash, which the version's url points at."""
    torch.save(models.resnet18().state_dict(), folder / "random.pth")
    digest = named or hashlib.sha256((folder / "random.pth").read_bytes()).hexdigest()[:8]
    path = (folder / "random.pth").rename(folder / f"resnet18-{digest}.pth")
    monkeypatch.setattr(version.value, "url", path.as_uri())
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


# PixelModel


def test_resize_then_normalise_then_gather() -> None:
    network = toy_network(num_classes=10).eval()
    model = PixelModel(network, MEAN, STD, size=224, classes=[7, 1]).eval()
    large = transforms.resize(IMAGE, [224, 224], antialias=True)
    logits = network(transforms.normalize(large, list(MEAN), list(STD)))
    torch.testing.assert_close(model(IMAGE), logits[:, [7, 1]])
    assert torch.equal(model(IMAGE).argmax(1), torch.stack([logits[:, 7], logits[:, 1]], 1).argmax(1))
    small = PixelModel(network, MEAN, STD, size=16)
    shrunk = transforms.normalize(transforms.resize(IMAGE, [16, 16], antialias=True), list(MEAN), list(STD))
    torch.testing.assert_close(small(IMAGE), network(shrunk))
    torch.testing.assert_close(PixelModel(network)(IMAGE), network(IMAGE), rtol=0, atol=0)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_the_budget_is_in_pixels_of_the_small_image(attack: Any) -> None:
    model = PixelModel(toy_network(num_classes=10), MEAN, STD, size=224, classes=[3, 1, 8])
    result = attack(model, IMAGE, LABEL, eps=4 / 255)
    assert result.adversarial.shape == IMAGE.shape
    assert not result.zero_gradient.any()
    assert (result.adversarial != IMAGE).float().mean() > 0.9
    assert result.linf.max() <= 4 / 255 + 1e-6
    clean, attacked = (nn.functional.cross_entropy(model(x), LABEL) for x in (IMAGE, result.adversarial))
    assert attacked > clean


def test_what_other_modules_look_for() -> None:
    assert PixelModel(toy_network()).num_classes is None
    assert PixelModel(toy_network(), classes=[1]).num_classes == 1
    own = vision_model("resnet8", 10, mean=(0.1, 0.2, 0.3))
    model = PixelModel(own, size=32, classes=[4, 2])
    assert PixelModel(own).num_classes == 10
    assert model.normalize is own.normalize and model.backbone is own.backbone  # the network's normalisation, once
    assert [stage["module"] for stage in model.feature_info] == [stage["module"] for stage in own.feature_info]
    assert model.default_cfg == own.default_cfg
    for network in (model, PixelModel(toy_network())):
        with pytest.raises(ValueError, match="normalises pixels in \\[0, 1\\] itself"):
            check_pixels(network, IMAGE * 2)
    bare = PixelModel(vision_model("resnet8", 10, normalize=False), MEAN, STD)
    torch.testing.assert_close(bare.normalize.mean.flatten(), torch.tensor(MEAN))


def test_files_of_the_bare_network_and_of_all_classes_fit(tmp_path: Path) -> None:
    bare = vision_model("resnet8", 10, normalize=False).backbone
    trained = PixelModel(bare, MEAN, STD, classes=[1, 2]).eval()
    torch.save(bare.state_dict(), tmp_path / "bare.pt")
    torch.save(PixelModel(bare, MEAN, STD).state_dict(), tmp_path / "all.pt")
    torch.save(vision_model("resnet8", 10, mean=MEAN, std=STD).state_dict(), tmp_path / "other.pt")
    for name in ("bare.pt", "all.pt"):
        fresh = PixelModel(vision_model("resnet8", 10, normalize=False), MEAN, STD, classes=[1, 2]).eval()
        load_checkpoint(fresh, tmp_path / name)
        torch.testing.assert_close(fresh(IMAGE), trained(IMAGE), rtol=0, atol=0)
    load_checkpoint(trained, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not fit PixelModel: missing: backbone"):
        load_checkpoint(PixelModel(toy_network()), tmp_path / "bare.pt")


def test_an_export_names_the_class_and_its_weights_load(tmp_path: Path) -> None:
    network = toy_network().eval()
    model = PixelModel(network, MEAN, STD, size=16, classes=[0, 2]).eval()
    save_exported(model, tmp_path)
    with pytest.raises(ValueError, match=r"holds a lit_kd.models.pixels.PixelModel, .* build it and call load_check"):
        load_exported(tmp_path)
    fresh = PixelModel(toy_network(), (0.5,) * 3, (0.5,) * 3, size=16, classes=[0, 2]).eval()
    load_checkpoint(fresh, tmp_path / "model.safetensors")
    assert torch.equal(fresh(IMAGE), model(IMAGE))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": MEAN}, "mean=.* and std=None: give both"),
        ({"mean": MEAN, "std": STD, "network": PixelModel(nn.Identity())}, "PixelModel normalises pixels itself"),
        ({"mean": MEAN, "std": STD, "network": vision_model("resnet8", 3)}, "VisionModel normalises pixels itself"),
        ({"classes": []}, r"classes=\[\] must name at least one"),
        ({"classes": [1, 1]}, r"classes=\[1, 1\] must name .* none twice"),
        ({"classes": [-1, 0]}, r"classes spans \[-1, 0\] but the network has K logits"),
        ({"classes": [3], "network": vision_model("resnet8", 3)}, r"classes spans \[3, 3\] but the network has 3"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelModel(**{"network": toy_network(), **arguments})


# torchvision


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnext50_32x4d", 25_028_904),
        ("densenet201", 20_013_928),
        ("vgg19", 143_667_240),
        ("resnet101", 44_549_160),
    ],
)
def test_published_sizes(name: str, parameters: int) -> None:
    with torch.device("meta"):  # no memory, no initialisation
        model = torchvision_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.num_classes == 1000
    assert isinstance(model.normalize, Normalize)


def test_published_accuracies_need_the_version() -> None:
    """The anchors of the study are those of torchvision's metadata; V1 and V2 are 3.6 points apart."""
    versions = models.get_model_weights("resnext50_32x4d")
    accuracy = [v.meta["_metrics"]["ImageNet-1K"]["acc@1"] for v in versions]
    assert accuracy == [77.618, 81.198]


def test_auxiliary_outputs_are_left_out() -> None:
    with torch.device("meta"):
        model = torchvision_model("inception_v3", size=299)
    assert model.train()(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 1000)


def test_restricted_to_wnids(tmp_path: Path) -> None:
    wnids = ["n02012849", "n01443537", "n01440764"]
    file = write(tmp_path, {"wnids.txt": "\r\n".join(wnids).encode()}) / "wnids.txt"
    model = torchvision_model("resnet18", size=64, wnids=wnids).eval()
    assert model.classes.tolist() == [0, 1, 134]  # sorted, as the data number them
    assert model.num_classes == 3
    logits = model.backbone(model.normalize(IMAGE))
    assert torch.equal(model(IMAGE).argmax(1), logits[:, [0, 1, 134]].argmax(1))
    archive = write(tmp_path / "tiny.zip", {"tiny-imagenet-200/wnids.txt": file.read_bytes()})
    write(tmp_path / "holds", {"tiny-imagenet-200/wnids.txt": file.read_bytes()})
    for path in (file, tmp_path, archive, tmp_path / "holds"):
        assert read_wnids(path) == wnids
    empty = write(tmp_path / "empty.zip", {"words.txt": b""})
    for path in (tmp_path / "absent", empty):
        with pytest.raises(FileNotFoundError, match="is, or holds, no wnids.txt"):
            torchvision_model("resnet18", wnids=path)


def test_imagenet_labels() -> None:
    assert len(imagenet_wnids()) == len(set(imagenet_names())) == 1000
    assert list(imagenet_wnids()) == sorted(imagenet_wnids())
    assert imagenet_wnids()[:2] == ("n01440764", "n01443537")
    assert imagenet_names()[:2] == ["tench", "goldfish"]
    assert imagenet_labels(["n03126707", "n02012849"]) == [517, 134]  # both are called crane
    with pytest.raises(ValueError, match=r"not among ImageNet's 1000: n00, n01, n02, n03, n04 and 1 more\."):
        imagenet_labels([*(f"n0{i}" for i in range(6)), "n01440764"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "name='resnet19' is no classifier of torchvision; near: .*resnet18"),
        ({"name": "fcn_resnet50"}, "name='fcn_resnet50' is no classifier"),
        ({"weights": "V1"}, "weights='V1' is no version of resnet18's weights; there are: IMAGENET1K_V1"),
        ({"weights": "DEFAULT"}, "weights='DEFAULT' is no version"),
        ({"name": "vgg16", "weights": "IMAGENET1K_FEATURES"}, "there are: IMAGENET1K_V1"),
        ({"weights": "IMAGENET1K_V1", "num_classes": 200}, "num_classes=200 beside weights or wnids"),
        ({"wnids": ["n01440764"], "num_classes": 200}, "num_classes=200 beside weights or wnids"),
        ({"wnids": ["n01440764", "n99"]}, "not among ImageNet's 1000: n99"),
        ({"wnids": []}, "must name at least one class"),
    ],
)
def test_wrong_torchvision_arguments_are_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchvision_model(**{"name": "resnet18", **arguments})


def test_weights_are_fetched_once_and_their_hash_is_checked(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = models.ResNet18_Weights.IMAGENET1K_V1
    path = resnet18_file(tmp_path, version, monkeypatch)
    model = torchvision_model("resnet18", weights="IMAGENET1K_V1")
    assert torch.equal(model.backbone.fc.weight, torch.load(path)["fc.weight"])
    assert (hub / path.name).is_file()
    path.unlink()
    torchvision_model("resnet18", weights="IMAGENET1K_V1")
    resnet18_file(tmp_path, version, monkeypatch, named="00000000")
    with pytest.raises(ConnectionError, match=r"can't be fetched \(invalid hash.*elsewhere and add checkpoint="):
        torchvision_model("resnet18", weights="IMAGENET1K_V1")


def test_offline_is_one_sentence(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", fail)
    url = re.escape("https://download.pytorch.org/models/resnext50_32x4d-1a0047aa.pth")
    message = rf"^ResNeXt50_32X4D_Weights.IMAGENET1K_V2 can't be fetched \(.*no network.*\): fetch {url} elsewhere and"
    with pytest.raises(ConnectionError, match=message):
        torchvision_model("resnext50_32x4d", weights="IMAGENET1K_V2")


def test_a_file_beside_weights_has_to_be_that_version(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = resnet18_file(tmp_path, models.ResNet18_Weights.IMAGENET1K_V1, monkeypatch)
    model = torchvision_model("resnet18", weights="IMAGENET1K_V1", checkpoint=path)
    assert torch.equal(model.backbone.fc.weight, torch.load(path)["fc.weight"])
    assert not hub.exists()
    torch.save(models.resnet18().state_dict(), tmp_path / "own.pth")
    with pytest.raises(ValueError, match=r"own.pth is not ResNet18_Weights.IMAGENET1K_V1, .*leave weights out"):
        torchvision_model("resnet18", weights="IMAGENET1K_V1", checkpoint=tmp_path / "own.pth")
    own = torchvision_model("resnet18", checkpoint=tmp_path / "own.pth", wnids=["n01440764"])
    assert torch.equal(own.backbone.fc.weight, torch.load(tmp_path / "own.pth")["fc.weight"])
    with pytest.raises(ValueError, match="own.pth does not fit PixelModel: missing"):
        torchvision_model("resnet34", checkpoint=tmp_path / "own.pth")
    with pytest.raises(ValueError, match=r"own.pth does not fit .*of another shape: backbone.fc.bias \(1000,\)"):
        torchvision_model("resnet18", num_classes=200, checkpoint=tmp_path / "own.pth")


@pytest.mark.parametrize("name", ["densenet121", "mnasnet0_5"])
def test_files_that_only_torchvision_itself_reads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its densenet files say ``norm.1`` where the network says ``norm1``; mnasnet asks the file's metadata."""
    state = models.get_model(name).state_dict()
    old = state
    if name == "densenet121":  # written by torch 0.4: without metadata, and without counters of batches
        names = {key: re.sub(r"(denselayer\d+\.(?:norm|relu|conv))([12])\.", r"\1.\2.", key) for key in state}
        old = {names[key]: value for key, value in state.items() if "num_batches" not in key}
    torch.save(old, tmp_path / "old.pth")
    digest = hashlib.sha256((tmp_path / "old.pth").read_bytes()).hexdigest()[:8]
    version = models.get_model_weights(name).IMAGENET1K_V1
    monkeypatch.setattr(version.value, "url", f"https://host/{name}-{digest}.pth")
    model = torchvision_model(name, weights="IMAGENET1K_V1", checkpoint=tmp_path / "old.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())


# From the command line

QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
DATA = ["--data=TinyImageNetDataModule", "--data.eval_batch_size=2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tiny_files, "WNIDS", ["n03126707", "n01443537", "n02012849"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(config: str, folder: Path) -> list[str]:
    root = write(folder / "tiny.zip", tiny_files.tiny_imagenet())
    (folder / "config.yaml").write_text(f"model:\n  class_path: Classifier\n  init_args:\n    network:\n{config}")
    return ["-c", str(folder / "config.yaml"), *DATA, f"--data.root={root}", *QUIET]


@pytest.mark.parametrize(
    ("label_space", "wnids", "count"), [("tiny", "wnids: tiny.zip", 3), ("imagenet", "checkpoint: null", 1000)]
)
def test_torchvision_in_yaml(label_space: str, wnids: str, count: int, folder: Path) -> None:
    """Both protocols: 3-way, restricted; 1000-way."""
    config = f"""
      class_path: lit_kd.models.torchvision_model
      init_args: {{name: resnet18, size: 64, {wnids}}}
"""
    given = [*words(config, folder), f"--data.label_space={label_space}"]
    assert LitKDCLI(given, run=False).model.network.num_classes == count
    main(["test", *given])


def test_a_nested_network_in_yaml(folder: Path) -> None:
    config = """
      class_path: lit_kd.models.PixelModel
      init_args:
        network:
          class_path: lit_kd.models.vision_model
          init_args: {name: resnet8, num_classes: 10, normalize: false}
        mean: [0.5, 0.5, 0.5]
        std: [0.25, 0.25, 0.25]
        size: 32
        classes: [7, 8, 9]
"""
    given = words(config, folder)
    network = LitKDCLI(given, run=False).model.network
    assert network.classes.tolist() == [7, 8, 9] and network.normalize.std.flatten().tolist() == [0.25] * 3
    main(["test", *given])


def test_another_protocol_than_the_datas_is_one_sentence(folder: Path) -> None:
    config = """
      class_path: lit_kd.models.torchvision_model
      init_args: {name: resnet18, size: 64}
"""
    with pytest.raises(ValueError, match="The network has 1000 classes but num_classes=3"):
        LitKDCLI(words(config, folder), run=False)


# Real images


def test_real_images_in_both_protocols() -> None:
    folder = SHARED
    root = folder / "tiny-imagenet-200" / "tiny-imagenet-200-subset20.zip"
    if not root.is_file():
        pytest.skip(f"no {root} (environment variable LITKD_DATA)")
    sets, networks = {}, {}
    for space, wnids in (("tiny", root), ("imagenet", None)):
        data = TinyImageNetDataModule(root=root, label_space=space)
        data.setup("test")
        torch.manual_seed(0)
        sets[space], networks[space] = data, torchvision_model("resnet18", size=64, wnids=wnids).eval()
    kept = networks["tiny"].classes
    tiny, imagenet = (sets[space].sets["test"].labels for space in ("tiny", "imagenet"))
    assert torch.equal(kept[tiny], imagenet)
    image, rows = sets["tiny"].sets["test"].pixels[::100] / 255, slice(None, None, 100)
    with torch.no_grad():
        assert torch.equal(networks["tiny"](image), networks["imagenet"](image)[:, kept])
    attacked = PixelModel(networks["tiny"].backbone, MEAN, STD, size=112, classes=kept.tolist())
    result = fgsm(attacked, image, tiny[rows], eps=2 / 255)
    assert result.adversarial.shape == image.shape and not result.zero_gradient.any()
    assert result.linf.max() <= 2 / 255 + 1e-6

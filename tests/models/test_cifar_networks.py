"""CIFAR networks: published sizes and accuracies, timm's interface, and the maps that feature losses read."""

import copy
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from shared_data import DATA
from torch import Tensor, nn

from lit_kd.models.cifar import CIFARNetwork, CIFARWideResNet

# Parameters for 100 classes, published: RepDistiller's networks, whose ResNets have option B shortcuts.
PUBLISHED = {
    "resnet20": 278_324,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
NARROW_RESNETS = [f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)]
NAMES = sorted({*PUBLISHED, *NARROW_RESNETS})
ONE_PER_FAMILY = ["resnet8", "resnet8x4", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def create(name: str, **settings: Any) -> Any:
    network = timm.create_model(name, **settings)
    assert isinstance(network, CIFARNetwork)
    return network


# Sizes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    settings = {"shortcut": "B"} if name.startswith("resnet") else {}
    assert parameters(create(name, num_classes=100, **settings)) == PUBLISHED[name]


@pytest.mark.parametrize("name", [*NARROW_RESNETS, "resnet8x4", "resnet32x4"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_resnet_parameter_count_in_closed_form(name: str, shortcut: str) -> None:
    depth = int(name.removeprefix("resnet").removesuffix("x4"))
    stem, *widths = (32, 64, 128, 256) if name.endswith("x4") else (16, 16, 32, 64)
    blocks = (depth - 2) // 6
    expected = 27 * stem + 2 * stem + widths[-1] * 10 + 10
    for before, width in zip([stem, *widths], widths, strict=False):
        expected += 9 * before * width + (2 * blocks - 1) * 9 * width**2 + blocks * 4 * width
        if shortcut == "B" and before != width:
            expected += before * width + 2 * width
    assert parameters(create(name, num_classes=10, shortcut=shortcut)) == expected


@pytest.mark.parametrize(("depth", "factor"), [(10, 1), (16, 2), (40, 1), (40, 2)])
def test_wide_resnet_parameter_count_in_closed_form(depth: int, factor: int) -> None:
    blocks, widths = (depth - 4) // 6, [16 * factor, 32 * factor, 64 * factor]
    expected = 27 * 16 + 2 * widths[-1] + widths[-1] * 100 + 100
    for before, width in zip([16, *widths], widths, strict=False):
        expected += 9 * before * width + (2 * blocks - 1) * 9 * width**2  # convolutions
        expected += 2 * before + (2 * blocks - 1) * 2 * width  # batch norms
        expected += before * width if before != width else 0  # shortcut
    assert parameters(CIFARWideResNet(depth, factor)) == expected


# Published weights on real images


@pytest.fixture(scope="module")
def jpeg_test_set() -> tuple[Tensor, Tensor]:
    """CIFAR-10 test images (10000, 3, 32, 32) and labels: recompressed as JPEG, so about 10 points harder."""
    path = DATA / "cifar10" / "test.zip"
    if not path.is_file():
        pytest.skip(f"{path} is missing: set LITKD_DATA to the folder of the real data.")
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        pixels = np.stack([np.asarray(Image.open(BytesIO(archive.read(name)))) for name in names])
    classes = sorted({name.split("/")[0] for name in names})
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return image, torch.tensor([classes.index(name.split("/")[0]) for name in names])


@pytest.mark.parametrize(
    ("name", "file", "count", "accuracy"),
    [
        ("resnet20", "resnet20-12fca82f.th", 269_722, 81.03),
        pytest.param("resnet32", "resnet32-d509ac18.th", 464_154, 82.56, marks=pytest.mark.slow),
        pytest.param("resnet44", "resnet44-014dd654.th", 658_586, 82.67, marks=pytest.mark.slow),
        pytest.param("resnet56", "resnet56-4bfd9763.th", 853_018, 83.20, marks=pytest.mark.slow),
    ],
)
def test_published_weights_reach_their_accuracy(
    name: str, file: str, count: int, accuracy: float, jpeg_test_set: tuple[Tensor, Tensor]
) -> None:
    image, label = jpeg_test_set
    weights = torch.load(DATA / "weights" / file, map_location="cpu", weights_only=True)["state_dict"]
    network = create(name, num_classes=10).eval()
    network.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
    assert parameters(network) == count

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = ((image - mean[:, None, None]) / std[:, None, None]).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        predicted = torch.cat([network(batch).argmax(dim=1) for batch in image.split(500)])
    assert (predicted == label).float().mean().item() * 100 == pytest.approx(accuracy, abs=0.02)


# timm's interface


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name: str) -> None:
    network = create(name, num_classes=7)
    image = torch.rand(2, 3, 32, 32)
    logits = network(image)
    logits.square().sum().backward()
    assert logits.shape == (2, 7)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    features = network.eval().forward_features(image)
    pooled = network.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, network.num_features) and network.head_hidden_size == network.num_features
    torch.testing.assert_close(network.forward_head(features), network(image))
    torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_other_images(name: str) -> None:
    assert create(name)(torch.rand(2, 3, 64, 64)).shape == (2, 100)
    assert create(name, in_chans=1)(torch.rand(2, 1, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_eval_is_deterministic_also_for_copies_and_channels_last(name: str) -> None:
    network = create(name, drop_rate=0.5).eval()
    image = torch.rand(2, 3, 32, 32)
    expected = network(image)
    assert torch.equal(network(image), expected)
    assert torch.equal(copy.deepcopy(network)(image), expected)
    network = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(image.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_compiles_without_graph_break(name: str) -> None:
    network = create(name).eval()
    image = torch.rand(2, 3, 32, 32)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), network(image))


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_reset_classifier(name: str) -> None:
    network = create(name).double()
    network.reset_classifier(3)
    classifier = network.get_classifier()
    assert isinstance(classifier, nn.Linear) and classifier.weight.dtype == torch.float64
    assert classifier is network.get_submodule(network.default_cfg["classifier"])
    assert network.num_classes == classifier.out_features == 3
    assert network(torch.rand(2, 3, 32, 32, dtype=torch.float64)).shape == (2, 3)
    network.reset_classifier(0)
    assert network(torch.rand(2, 3, 32, 32, dtype=torch.float64)).shape == (2, network.num_features)
    assert create(name, num_classes=0)(torch.rand(2, 3, 32, 32)).shape == (2, network.num_features)


def test_drop_rate_applies_to_the_pooled_features_in_training_only() -> None:
    network = create("resnet8", drop_rate=0.5)
    features = torch.ones(8, 64, 8, 8)
    assert set(network.forward_head(features, pre_logits=True).unique().tolist()) == {0.0, 2.0}
    assert set(network.eval().forward_head(features, pre_logits=True).unique().tolist()) == {1.0}


def test_default_cfg_describes_cifar() -> None:
    config = create("vgg13", num_classes=10).default_cfg
    assert config["input_size"] == (3, 32, 32) and config["num_classes"] == 100
    assert config["mean"] == (0.5071, 0.4867, 0.4408) and config["std"] == (0.2675, 0.2565, 0.2761)
    assert timm.models.get_pretrained_cfg_value("resnet20", "input_size") == (3, 32, 32)


def test_initialisation_is_he_normal_over_the_fan_out() -> None:
    weight = create("wrn_40_2").get_submodule("block3.1.conv1").weight
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.01)
    assert create("vgg8").linear.weight.std().item() == pytest.approx(0.01, rel=0.02)


# Maps for feature losses


def record(network: nn.Module, path: str, maps: dict[str, Tensor]) -> None:
    module = network.get_submodule(path.removesuffix(":input"))
    if path.endswith(":input"):
        module.register_forward_pre_hook(lambda _, inputs: maps.update({path: inputs[0]}))
    else:
        module.register_forward_hook(lambda _, __, output: maps.update({path: output}))


STAGES = {"resnet": 3, "wrn": 3, "vgg": 4, "mobilenetv2": 4, "shufflenet": 3}


@pytest.mark.parametrize("name", NAMES)
def test_feature_info_names_the_maps_of_all_stages(name: str) -> None:
    network = create(name)
    maps: dict[str, Tensor] = {}
    assert len(network.feature_info) == next(n for family, n in STAGES.items() if name.startswith(family))
    for stage in network.feature_info:
        record(network, stage["module"], maps)
        record(network, stage["preact"], maps)
    network(torch.rand(2, 3, 32, 32))
    for stage in network.feature_info:
        after, before = maps[stage["module"]], maps[stage["preact"]]
        size = 32 // stage["reduction"]
        assert after.shape == before.shape == (2, stage["num_chs"], size, size)
        assert before.min() < 0
        if name == "shufflenetv2":  # the last unit of a stage shuffles after its activation
            torch.testing.assert_close(after, nn.functional.channel_shuffle(before.relu(), 2))
        elif not name.startswith(("wrn", "mobilenet")):  # whose stages end without an activation
            torch.testing.assert_close(after, before.relu())


def test_wide_resnet_preact_is_the_normalised_map() -> None:
    network = create("wrn_16_2").eval()
    maps: dict[str, Tensor] = {}
    for path in ("block1", "block2.0.act1:input", "block3", "act1:input"):
        record(network, path, maps)
    network(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(maps["block2.0.act1:input"], network.block2[0].bn1(maps["block1"]))
    torch.testing.assert_close(maps["act1:input"], network.bn1(maps["block3"]))


def test_vgg_pools_large_images_once_more() -> None:
    network = create("vgg8").eval()
    assert network.forward_features(torch.rand(1, 3, 32, 32)).shape[-1] == 4
    assert network.forward_features(torch.rand(1, 3, 64, 64)).shape[-1] == 4


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_features_only_gives_the_last_stages(name: str) -> None:
    channels = [stage["num_chs"] for stage in create(name).feature_info[-3:]]
    network: Any = timm.create_model(name, features_only=True)
    assert [feature.shape[1] for feature in network(torch.rand(2, 3, 32, 32))] == channels
    assert network.feature_info.channels() == channels


def test_shortcut_a_drops_pixels_and_pads_channels() -> None:
    network = create("resnet8")
    x = torch.rand(1, 16, 4, 4)
    out = network.layer2[0].downsample(x)
    assert out.shape == (1, 32, 2, 2)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].count_nonzero() == out[:, 24:].count_nonzero() == 0
    assert not list(network.layer2[0].downsample.parameters())


# Names shared with timm, and wrong arguments


@pytest.mark.parametrize(("name", "pretrained"), [("vgg13", True), ("vgg13.tv_in1k", True), ("vgg13.tv_in1k", False)])
def test_timms_pretrained_vgg13_is_unaffected(name: str, pretrained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load_pretrained(model: nn.Module, pretrained_cfg: dict[str, Any], **_: Any) -> None:
        loaded.append(pretrained_cfg["hf_hub_id"])

    monkeypatch.setattr("timm.models._builder.load_pretrained", load_pretrained)
    with torch.device("meta"):
        network: Any = timm.create_model(name, pretrained=pretrained)
    assert network.pretrained_cfg["tag"] == "tv_in1k"
    assert isinstance(network, timm.models.VGG) and parameters(network) == 133_047_848
    assert loaded == ["timm/vgg13.tv_in1k"] * pretrained
    assert "vgg13.tv_in1k" in timm.list_pretrained("vgg13*")


def test_import_gives_no_overwrite_warning() -> None:
    code = "import warnings; warnings.filterwarnings('error', 'Overwriting'); import lit_kd.models.cifar"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="resnet20 has no pretrained weights: pass checkpoint="):
        timm.create_model("resnet20", pretrained=True)
    with pytest.raises(ValueError, match="resnet20 has no pretrained weights"):
        timm.create_model("resnet20.some_tag")
    with pytest.raises(TypeError, match="drop_path_rate"):
        timm.create_model("wrn_16_2", drop_path_rate=0.1)

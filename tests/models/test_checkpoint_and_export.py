import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toy import toy_network

from lit_kd.models import VisionModel, load_checkpoint, load_exported, save_exported, vision_model

IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> VisionModel:
    torch.manual_seed(1)
    return vision_model("resnet8", 10).eval()


def logits_after_loading(path: Path) -> torch.Tensor:
    return vision_model("resnet8", 10, checkpoint=path).eval()(IMAGE)


@pytest.mark.parametrize(
    "prefix", ["", "student.", "network.", "model.", "module.", "model.module.", "module._orig_mod."]
)
def test_prefixes_are_stripped(network: VisionModel, tmp_path: Path, prefix: str) -> None:
    torch.save({"state_dict": {prefix + key: value for key, value in network.state_dict().items()}}, tmp_path / "a.pt")
    assert torch.equal(logits_after_loading(tmp_path / "a.pt"), network(IMAGE))


def test_a_bare_backbone_and_safetensors_load_too(network: VisionModel, tmp_path: Path) -> None:
    torch.save(network.backbone.state_dict(), tmp_path / "a.pt")
    save_file(network.backbone.state_dict(), tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        assert torch.equal(logits_after_loading(tmp_path / name), network(IMAGE))


def test_of_a_lightning_checkpoint_only_the_network_is_taken(network: VisionModel, tmp_path: Path) -> None:
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    extra = {"centroid_table": torch.zeros(10, 10), "objective.regressor.weight": torch.zeros(3)}
    torch.save({"state_dict": {**extra, **state}, "pytorch-lightning_version": "2.6.1"}, tmp_path / "a.ckpt")
    assert torch.equal(logits_after_loading(tmp_path / "a.ckpt"), network(IMAGE))


def test_the_checkpoint_keeps_the_constants_that_its_weights_were_trained_with(tmp_path: Path) -> None:
    trained = vision_model("resnet8", 10, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    loaded = vision_model("resnet8", 10, checkpoint=tmp_path / "a.pt")
    torch.testing.assert_close(loaded.normalize.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_files_that_do_not_fit_are_one_sentence(network: VisionModel, tmp_path: Path) -> None:
    torch.save(vision_model("resnet8", 100).state_dict(), tmp_path / "classes.pt")
    with pytest.raises(ValueError, match=r"does not fit VisionModel: of another shape: .*\(100,\) for \(10,\)"):
        load_checkpoint(network, tmp_path / "classes.pt")
    torch.save(vision_model("resnet14", 10).state_dict(), tmp_path / "deeper.pt")
    with pytest.raises(ValueError, match=r"unexpected: backbone\.layer1\.1.* and \d+ more"):
        load_checkpoint(network, tmp_path / "deeper.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt .*is not a checkpoint"):
        load_checkpoint(network, tmp_path / "text.pt")
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"state_dict": Path("x")}))
    with pytest.raises(ValueError, match="code.pt"):
        load_checkpoint(network, tmp_path / "code.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="no state dict"):
        load_checkpoint(network, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="consolidate_checkpoint"):
        load_checkpoint(network, tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        load_checkpoint(network, tmp_path / "absent.pt")


def test_export_round_trip(network: VisionModel, tmp_path: Path) -> None:
    network = vision_model("resnet8", 10, mean=(0.1, 0.2, 0.3), model_kwargs={"shortcut": "B"}).eval()
    save_exported(network, tmp_path / "out", {"class_names": ["a"]})
    loaded = load_exported(tmp_path / "out")
    assert torch.equal(loaded(IMAGE), network(IMAGE)) and not loaded.training
    description = json.loads((tmp_path / "out" / "model.json").read_text())
    assert description["input"]["mean"] == pytest.approx([0.1, 0.2, 0.3]) and description["class_names"] == ["a"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "model.json",
        "model.safetensors",
    ]


def test_export_of_a_compiled_or_foreign_network(network: VisionModel, tmp_path: Path) -> None:
    save_exported(torch.compile(network, backend="eager"), tmp_path / "compiled")  # type: ignore[arg-type]
    assert torch.equal(logits_after_loading(tmp_path / "compiled" / "model.safetensors"), network(IMAGE))
    save_exported(toy_network(), tmp_path / "foreign")
    with pytest.raises(ValueError, match="no factory of ours builds"):
        load_exported(tmp_path / "foreign")
    load_checkpoint(toy_network(), tmp_path / "foreign" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="not an exported network"):
        load_exported(tmp_path)


def test_factory_normalises_inside_and_names_near_networks() -> None:
    model = vision_model("resnet8", 10).eval()
    mean, std = (
        torch.tensor(model.default_cfg["mean"]).view(3, 1, 1),
        torch.tensor(model.default_cfg["std"]).view(3, 1, 1),
    )
    torch.testing.assert_close(model(IMAGE), model.backbone((IMAGE - mean) / std))
    grey = vision_model("resnet8", 10, in_chans=1)
    assert grey(IMAGE[:, :1]).shape == (2, 10)
    assert isinstance(vision_model("resnet8", 10, normalize=False).normalize, nn.Identity)
    with pytest.raises(ValueError, match=r"name='resnet2O' is no network of timm's registry; near: .*resnet20"):
        vision_model("resnet2O", 10)


def test_channels_last_changes_the_memory_format_and_not_the_numbers() -> None:
    torch.manual_seed(0)
    plain = vision_model("resnet8", 10).eval()
    torch.manual_seed(0)
    fast = vision_model("resnet8", 10, channels_last=True).eval()
    assert fast.backbone.conv1(IMAGE).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(IMAGE), plain(IMAGE), rtol=1e-4, atol=1e-4)


def test_others_may_read_the_weights(network: VisionModel, tmp_path: Path) -> None:
    """On a shared disk; safetensors itself lets nobody else."""
    save_exported(network, tmp_path)
    usual = tmp_path / "usual"
    usual.touch()
    assert {file.stat().st_mode for file in tmp_path.iterdir()} == {usual.stat().st_mode}

"""Any network made complete: pixels in [0, 1] in, logits out, resize and normalisation inside; ImageNet's labels."""

import difflib
import hashlib
import zipfile
from collections.abc import Iterable
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor, nn
from torchvision import models

from lit_kd.checks import check_list, check_network, check_whole, check_whole_or_none
from lit_kd.models.checkpoint import load_checkpoint
from lit_kd.models.factory import Normalize, VisionModel


class PixelModel(nn.Module):
    r"""A network that is complete: pixels in [0, 1] in, logits out, and all that lies between can be attacked.

    .. math:: x \in [0, 1]^{B \times C \times h \times w}
        \to resize \to (x - mean) / std \to network \to logits[:, classes]

    As the resize is part of the network, an attack's budget is in pixels of the image before it: eps on a 64x64 image
    that the network sees at 224x224 is eps on the 64x64 pixels. It is bilinear (``align_corners=False``), with
    antialiasing only where it shrinks; where it enlarges, antialiasing would change nothing.

    A file of the bare ``network``, or of the same network with and without ``classes``, fits
    (:func:`lit_kd.models.load_checkpoint`): the indices are not saved. An export's weights load likewise, into a
    PixelModel that has been built first.

    Args:
        network: any module from normalised images to logits (B, K). Of auxiliary outputs (torchvision's
            ``inception_v3`` in training) the first is taken. A ``vision_model`` brings its normalisation.
        mean: per channel, of pixels in [0, 1]; None: ``network`` takes pixels as they are.
        std: likewise.
        size: the network sees size x size pixels; None: the image as it comes.
        classes: indices into the network's K logits, e.g. the 200 of Tiny ImageNet among 1000 ("restricted 200-way"):
            logits, and so loss and attack, are over these alone, in this order. None: all.

    Attributes:
        normalize: the :class:`Normalize`, of mean 0 and std 1 where there is nothing to do.
        backbone: ``network``, classifier included.
        num_classes: number of logits; None where the network does not say.

    Raises:
        ValueError: one of mean and std, a second normalisation, a size below 1, or classes that are empty, repeated or
            not among the network's.

    Example:
        >>> network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
        >>> model = PixelModel(network, mean=(0.5,) * 3, std=(0.25,) * 3, size=224, classes=[1, 7])
        >>> model(torch.zeros(4, 3, 64, 64)).shape, model.num_classes
        (torch.Size([4, 2]), 2)
    """

    classes: Tensor | None
    feature_info = VisionModel.feature_info  # both ask the backbone
    default_cfg = VisionModel.default_cfg

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        size: int | None = None,
        classes: list[int] | None = None,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean} and std={std}: give both, or neither for a network that takes pixels.")
        if mean is not None and isinstance(getattr(network, "normalize", None), Normalize):
            raise ValueError(f"{type(network).__name__} normalises pixels itself: leave mean={mean} and std={std} out.")
        check_network(network=network)
        check_whole_or_none(size=size)
        count = getattr(network, "num_classes", None)
        if classes is not None:
            check_list(classes=classes)
            _check_indices(classes, count)
        constants = Normalize(tuple(mean or (0.0,)), tuple(std or (1.0,)))
        if isinstance(network, VisionModel):  # its two parts have the names of ours, so that its files fit, too
            network, own = network.backbone, network.normalize
            constants = own if isinstance(own, Normalize) else constants
        self.normalize = constants
        self.backbone = network
        self.size = size
        self.register_buffer("classes", None if classes is None else torch.tensor(classes), persistent=False)
        self.num_classes: int | None = count if classes is None else len(classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, h, w) in [0, 1]."""
        if self.size is not None and tuple(image.shape[-2:]) != (self.size, self.size):
            shrinks = self.size < max(image.shape[-2:])
            image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=shrinks)
        logits = self.backbone(self.normalize(image))
        if isinstance(logits, tuple):
            logits = logits[0]
        return logits if self.classes is None else logits[:, self.classes]


def _check_indices(classes: list[int], count: int | None) -> None:
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes={classes} must name at least one class, and none twice.")
    if min(classes) < 0 or (count is not None and max(classes) >= count):
        raise ValueError(f"classes spans [{min(classes)}, {max(classes)}] but the network has {count or 'K'} logits.")


def torchvision_model(
    name: str,
    weights: str | None = None,
    num_classes: int = 1000,
    size: int | None = None,
    wnids: list[str] | str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> PixelModel:
    """Any classification network of torchvision, of ImageNet's classes by default, as a :class:`PixelModel`.

    Mean and std are those of the weights, ImageNet's without. Clean accuracy is published for full-size images
    (resized and centre-cropped); of 64x64 images enlarged by ``size`` it is far lower.

    Args:
        name: name in ``torchvision.models.list_models(module=torchvision.models)``, e.g. ``resnext50_32x4d``.
        weights: torchvision's name of the version, e.g. ``IMAGENET1K_V1`` or ``IMAGENET1K_V2``, which differ by points
            (resnext50_32x4d: 77.6 and 81.2 %); downloaded, or found in torch.hub's folder. None: random.
        num_classes: number of the network's logits, before ``wnids`` picks some.
        size: see :class:`PixelModel`; most weights were trained at 224, ``weights`` of ``inception_v3`` at 299.
        wnids: the "restricted" protocol: the WordNet ids whose logits are kept, in sorted order, which is how
            :class:`lit_kd.datamodules.TinyImageNetDataModule` numbers its classes. Ids, or the path of a ``wnids.txt``,
            or of the folder or zip that holds it: the data's ``root``. None: all logits; for the "1000-way" protocol,
            whose labels are ImageNet's, give the data ``label_space="imagenet"``.
        checkpoint: with ``weights``: the file of that version, fetched beforehand; its hash is checked. Without: a file
            of your own, see :func:`lit_kd.models.load_checkpoint`.

    Raises:
        ValueError: a name or version that torchvision lacks; a number of classes that is not ImageNet's beside weights
            or wnids; wnids outside ImageNet's 1000; a checkpoint that does not fit, or is not the version's.
        FileNotFoundError: no such checkpoint or wnids.
        ConnectionError: the weights can't be fetched, or what came has another hash.

    Example:
        >>> model = torchvision_model("resnet18", size=64, wnids=["n01443537", "n01440764"])
        >>> model.classes, model(torch.zeros(2, 3, 32, 32)).shape  # tench (n01440764) comes first
        (tensor([0, 1]), torch.Size([2, 2]))
    """
    check_whole(num_classes=num_classes)
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5)
        raise ValueError(f"name={name!r} is no classifier of torchvision; near: {', '.join(near) or 'none'}.")
    if num_classes != 1000 and not (weights is None and wnids is None):
        raise ValueError(
            f"num_classes={num_classes} beside weights or wnids, which are of ImageNet's 1000: leave it out."
        )
    kept = None
    if wnids is not None:
        kept = imagenet_labels(sorted(set(wnids if isinstance(wnids, list) else read_wnids(wnids))))
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if weights is None:
        network = models.get_model(name, weights=None, num_classes=num_classes)
    else:
        # Those without categories are of the feature extractor alone. An alias (DEFAULT) is not listed: it states none.
        versions = {
            version.name: version for version in models.get_model_weights(name) if version.meta.get("categories")
        }
        if weights not in versions:
            raise ValueError(
                f"weights={weights!r} is no version of {name}'s weights; there are: {', '.join(versions)}."
            )
        version = versions[weights]
        state = _version_state(version, checkpoint)
        # Through torchvision's own builder, which renames keys of old files (densenet) and sets transform_input.
        with patch.object(type(version), "get_state_dict", return_value=state):
            network = models.get_model(name, weights=version)
        preset = version.transforms()
        mean, std = tuple(preset.mean), tuple(preset.std)
    model = PixelModel(network, mean, std, size, kept)
    model.num_classes = num_classes if kept is None else len(kept)  # few of torchvision's networks say
    if weights is None and checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model


def _version_state(version: Any, checkpoint: str | Path | None) -> dict[str, Tensor]:
    if checkpoint is None:
        try:
            return version.get_state_dict(check_hash=True, map_location="cpu", weights_only=True)
        except (OSError, HTTPException, RuntimeError) as error:
            raise ConnectionError(
                f"{version!r} can't be fetched ({error}): fetch {version.url} elsewhere and add checkpoint=<that file>."
            ) from error
    digest = hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()
    wanted = Path(version.url).stem.rpartition("-")[2]
    if not digest.startswith(wanted):
        raise ValueError(
            f"{checkpoint} is not {version!r}, whose sha256 starts with {wanted} (not {digest[: len(wanted)]}): "
            "leave weights out for a file of your own."
        )
    return torch.load(checkpoint, map_location="cpu", weights_only=True)  # with its metadata, which mnasnet needs


# ImageNet's labels


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """ImageNet's 1000 WordNet ids, sorted: a label is a position in them.

    Example:
        >>> imagenet_wnids()[:2]
        ('n01440764', 'n01443537')
    """
    return tuple(ImageNetInfo("imagenet-1k").label_names())


def imagenet_names() -> list[str]:
    """Their 1000 names as torchvision gives them, no two alike, e.g. ``tench``, ``goldfish``, ..."""
    return list(models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def imagenet_labels(wnids: Iterable[str]) -> list[int]:
    """ImageNet's label, 0 to 999, of each WordNet id.

    Raises:
        ValueError: ids that are not among ImageNet's 1000; the sentence names them.

    Example:
        >>> imagenet_labels(["n01443537", "n15075141"])
        [1, 999]
    """
    position = {wnid: label for label, wnid in enumerate(imagenet_wnids())}
    wnids = list(wnids)
    if missing := [wnid for wnid in wnids if wnid not in position]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"wnids that are not among ImageNet's 1000: {', '.join(missing[:5])}{more}.")
    return [position[wnid] for wnid in wnids]


def read_wnids(path: str | Path) -> list[str]:
    """The WordNet ids in a ``wnids.txt``, one a line, or in that of a folder or zip archive of Tiny ImageNet.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    places = (path, path / "wnids.txt", *path.glob("*/wnids.txt"))
    file = next((place for place in places if place.is_file()), None)
    if file is not None and not zipfile.is_zipfile(file):
        return file.read_text().split()
    if file is not None:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.rpartition("/")[2] == "wnids.txt":
                    return archive.read(name).decode().split()
    raise FileNotFoundError(f"wnids={path} is, or holds, no wnids.txt: give Tiny ImageNet's, or its folder or zip.")

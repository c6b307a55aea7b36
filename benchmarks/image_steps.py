"""Steps of the image methods, and the same written in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader

from benchmarks.attacks import ALPHA, EPS, STEPS, bare_pgd
from benchmarks.multi_crop import TorchvisionViews
from benchmarks.random_images import RandomImages
from benchmarks.steps import (
    OURS,
    Batch,
    Loss,
    Size,
    Variant,
    calls,
    constant,
    in_bare_loop,
    pair,
    through_trainer,
)
from lit_kd.attacks import pgd
from lit_kd.datamodules import MultiCropViews
from lit_kd.datamodules.augment import counter_uniform
from lit_kd.methods import Classifier, DefensiveDistill, LinearEvaluation, MCMIDistill, MCMITeacher, OBoWModule
from lit_kd.models import vision_model
from lit_kd.objectives import KD, Objective

CONSTANT: Any = {"lr_scheduler": constant}


def images(size: Size, **settings: Any) -> RandomImages:
    """Batches of CIFAR-10's size, padded, cropped and flipped."""
    settings = {"batch_size": size.pick(16, 64), "samples": size.pick(512, 5120), **settings}
    return RandomImages(**settings)


def student(size: Size, num_classes: int = 10) -> Any:
    """The small network."""
    return vision_model(size.pick("resnet8", "resnet20"), num_classes=num_classes)


def teacher(size: Size) -> Any:
    """The large one."""
    return vision_model(size.pick("resnet14", "resnet56"), num_classes=10)


def classifier(size: Size) -> dict[str, Variant]:
    """Cross-entropy."""

    def loss(module: Classifier) -> Loss:
        return lambda batch: F.cross_entropy(module.network(batch["image"]), batch["label"])

    return pair(size, lambda: Classifier(student(size), 10, **CONSTANT), images(size), loss)


def mcmi_teacher(size: Size) -> dict[str, Variant]:
    """Cross-entropy less lambda times the divergence from a table of centroids that is there already."""

    def make() -> MCMITeacher:
        module = MCMITeacher(teacher(size), 10, measure_every_n_epochs=1_000_000, **CONSTANT)
        module.centroid_table.copy_(torch.randn(10, 10).softmax(1))
        return module

    def loss(module: MCMITeacher) -> Loss:
        def of(batch: Batch) -> Tensor:
            logits, label = module.network(batch["image"]), batch["label"]
            log_p = logits.log_softmax(1)
            divergence = (log_p.exp() * (log_p - module.centroid_table[label].log())).sum(1).mean()
            return F.cross_entropy(logits, label) - module.weight * divergence

        return of

    return pair(size, make, images(size), loss)


def distil(size: Size, objective: Callable[[], Objective]) -> MCMIDistill:
    """A student of a teacher, both new."""
    return MCMIDistill(student(size), teacher(size), num_classes=10, objective=objective(), **CONSTANT)


def hinton(size: Size) -> dict[str, Variant]:
    """``0.9 T^2 KL + 0.1 CE``."""

    def loss(module: MCMIDistill) -> Loss:
        def of(batch: Batch) -> Tensor:
            with torch.no_grad():
                target = (module.teacher.module(batch["image"]) / 4).softmax(1)
            logits = module.student(batch["image"])
            kl = F.kl_div((logits / 4).log_softmax(1), target, reduction="batchmean")
            return 0.9 * 16 * kl + 0.1 * F.cross_entropy(logits, batch["label"])

        return of

    return pair(size, lambda: distil(size, KD), images(size), loss)


def beside_kd(size: Size, objective: Callable[[], Objective]) -> dict[str, Variant]:
    """Another objective beside Hinton's, both through the Trainer. CRD remembers all samples, as many as CIFAR-10's."""
    data = images(size, samples=size.pick(512, 50_000))
    kinds: dict[str, Callable[[], Objective]] = {"lit_kd KD": KD, OURS: objective}
    return {name: through_trainer(size, partial(distil, size, kind), data) for name, kind in kinds.items()}


def defensive(size: Size) -> dict[str, Variant]:
    """Cross-entropy with the teacher's soft labels at T = 20."""

    def loss(module: DefensiveDistill) -> Loss:
        def of(batch: Batch) -> Tensor:
            with torch.no_grad():
                target = (module.teacher.module(batch["image"]) / 20).softmax(1)
            return -(target * (module.network(batch["image"]) / 20).log_softmax(1)).sum(1).mean()

        return of

    return pair(size, lambda: DefensiveDistill(student(size), student(size), 10, **CONSTANT), images(size), loss)


def attack(size: Size) -> dict[str, Variant]:
    """PGD on a batch, all its steps."""
    model = student(size).eval().requires_grad_(False).to(size.device)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(16, 3, 32, 32, generator=generator).to(size.device)
    label = model(image).argmax(1)

    def ours() -> Tensor:
        return pgd(
            model, image, label, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False, stop_early=False
        ).adversarial

    # Not the same images: ours are the best of all steps.
    return calls(size, {"bare PGD": lambda: bare_pgd(model, image, label), OURS: ours})


def linear_evaluation(size: Size) -> dict[str, Variant]:
    """A linear layer on features of a frozen network."""

    def make() -> LinearEvaluation:
        return LinearEvaluation(student(size, 0), 10, batch_norm=True, optimizer=partial(SGD, lr=0.1), **CONSTANT)

    def loss(module: LinearEvaluation) -> Loss:
        backbone: Any = module.network.backbone
        head: Any = module.network.head

        def of(batch: Batch) -> Tensor:
            with torch.no_grad():
                feature = backbone.module(batch["image"])
            return F.cross_entropy(head(feature), batch["label"])

        return of

    return pair(size, make, images(size), loss)


def obow_module(size: Size) -> OBoWModule:
    """Two levels, words as in the other OBoW benchmarks."""
    return OBoWModule(
        student(size, 0),
        levels=2,
        num_words=size.pick(256, 2048),
        momentum_schedule="constant",
        image_shape=(3, 32, 32),
        **CONSTANT,
    )


def plain_obow(module: OBoWModule) -> Loss:
    """OBoW (arXiv:2012.11552) as one would write it first.

    Distances as a 1x1 convolution, codes of the whole batch, one multiply and add a tensor for the moving average.
    Batches need not be of this library: without ``visit`` the places of new words are drawn.
    """
    network, moving = module.student, module.teacher.module
    heads: list[Any] = list(module.heads)
    words: list[Tensor] = [vocabulary.words.clone() for vocabulary in module.vocabularies]  # type: ignore[operator]
    mean, step = [0.5 for _ in words], 0

    def maps(net: Any, image: Tensor) -> list[Tensor]:
        image, net = net.normalize(image), net.backbone
        middle = net.layer2(net.layer1(net.act1(net.bn1(net.conv1(image)))))
        return [middle, net.layer3(middle)]

    @torch.no_grad()
    def targets(image: Tensor, uniforms: Tensor) -> list[Tensor]:
        for own, theirs in zip(moving.parameters(), network.parameters(), strict=True):
            own.mul_(0.99).add_(theirs, alpha=0.01)
        found = []
        for level, x in enumerate(maps(moving, image)):
            x = x[:, :, 1:-1, 1:-1].contiguous()
            known = words[level]
            distance = F.conv2d(x, -2 * known[:, :, None, None], bias=known.square().sum(1))
            distance = x.square().sum(1, keepdim=True) + distance
            mean[level] = 0.99 * mean[level] + 0.01 * float(distance.amin(1).mean())
            pooled = F.avg_pool2d(x, 3, stride=1).flatten(2)
            place = (uniforms[:, level] * pooled.shape[2]).long()
            new = pooled[torch.arange(len(image)), :, place]
            bag = (-(15.0 / mean[level]) * distance).softmax(1).amax((2, 3))
            found.append(F.normalize(bag, p=1, dim=1))
            words[level] = known.clone()
            words[level][(step * len(image) + torch.arange(len(image))) % len(known)] = new
        return found

    def loss(batch: Batch) -> Tensor:
        nonlocal step
        image, crops = batch["image"], batch["crops"]
        before = list(words)
        features = [maps(network, crop)[-1].mean((2, 3)) for crop in crops]
        weights = [head.weights(v) for head, v in zip(heads, before, strict=True)]
        uniforms = torch.rand(len(image), 2)
        if "visit" in batch:
            uniforms = counter_uniform(module.seed ^ 0x0B0E, batch["visit"], batch["index"], 2)
        found, losses = targets(image, uniforms), []
        for feature, crop in zip(features, crops, strict=True):
            logits = [torch.mm(feature * 8, weight.T) for weight in weights]
            rows = [target.repeat_interleave(len(crop) // len(image), 0) for target in found]
            kl = [F.kl_div(z.log_softmax(1), y, reduction="batchmean") for z, y in zip(logits, rows, strict=True)]
            losses.append(torch.stack(kl).mean())
        step += 1
        return torch.stack(losses).sum()

    return loss


def obow_data(size: Size) -> RandomImages:
    """Two crops and five of nine patches."""
    return images(size, views=MultiCropViews.cifar())


def obow(size: Size) -> dict[str, Variant]:
    """On the same batches."""
    return pair(size, partial(obow_module, size), obow_data(size), plain_obow)


class ImageByImage(RandomImages):
    """The same images, whose views torchvision makes of PIL images one by one, in the process itself."""

    def train_dataloader(self) -> Any:
        """Batches of views, image-major."""
        assert self.views is not None
        views = TorchvisionViews(self.sets["train"].pixels, self.views, pil=True)  # type: ignore[attr-defined]
        return DataLoader(views, self.batch_size, shuffle=True, drop_last=True)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> dict[str, Any]:
        """Name the views."""
        image, *groups = batch
        return {"image": image, "crops": [group.flatten(0, 1) for group in groups]}


def obow_views(size: Size) -> dict[str, Variant]:
    """The bare loop with views made image by image."""
    data, make = obow_data(size), partial(obow_module, size)
    plain = ImageByImage(samples=data.samples, batch_size=data.batch_size, views=data.views)
    bare = in_bare_loop(size, make, plain, plain_obow)
    return {"bare loop, views by torchvision": bare, OURS: through_trainer(size, make, data)}

"""What frozen features are worth: linear evaluation; and fine-tuning with few labels.

Recipes: OBoW (Gidaris et al., arXiv:2012.11552), official code valeoai/obow.
"""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lit_kd.checks import check_image_shape, check_network, check_not_negative, check_whole
from lit_kd.datamodules.batch import Batch
from lit_kd.methods.classifier import Classifier
from lit_kd.models.compiled import unwrapped
from lit_kd.models.embedding import PooledFeatures
from lit_kd.models.levels import freeze_unused
from lit_kd.models.modes import eval_mode
from lit_kd.models.teacher import FrozenTeacher


class LinearOnFeatures(nn.Module):
    """A linear layer on the pooled features of a backbone: images (B, C, H, W) to logits (B, num_classes).

    Args:
        backbone: any network, or a :class:`FrozenTeacher` around it.
        num_classes: number of logits.
        layer: where the features are, see :class:`lit_kd.models.embedding.PooledFeatures`.
        batch_norm: scale the features by a batch norm without weights first.
        image_shape: (C, H, W) of the example that finds the number of features.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        layer: str | None = None,
        batch_norm: bool = False,
        image_shape: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        super().__init__()
        check_network(backbone=backbone)
        check_whole(2, num_classes=num_classes)
        check_image_shape(image_shape)
        self.backbone = unwrapped(backbone)
        self._pooled = PooledFeatures(self.backbone, layer)
        size = self._pooled.evaluate(torch.zeros(2, *image_shape)).shape[1]
        self.head = nn.Sequential(nn.BatchNorm1d(size, affine=False)) if batch_norm else nn.Sequential()
        linear = nn.Linear(size, num_classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        self.head.append(linear)

    @property
    def normalize(self) -> Any:
        """The backbone's first layer, by which it is known to take pixels in [0, 1]."""
        return getattr(getattr(self.backbone, "module", self.backbone), "normalize", None)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        return self.head(self._pooled(image))


class LinearEvaluation(Classifier):
    """A linear classifier on a frozen backbone: eval mode, no gradients, running statistics as they are.

    The checkpoint holds the head only, as ``network.head.*``: the backbone comes from its own file. Logged are
    accuracy, with more than 5 classes top-5 accuracy (``acc5``), and negative log-likelihood in nats.

    Recipe (ImageNet, ResNet-50): SGD 10, momentum 0.9, no weight decay, batch 1024, 100 epochs, cosine to 0 stepped
    once an epoch; random resized crops and flips. Other protocols of the same code, by ``optimizer`` and
    ``lr_scheduler``: ImageNet 20 %, ResNet-18: weight decay 2e-6, batch 256, 50 epochs, x0.1 at 15, 30 and 45;
    Places205: ``batch_norm``, rate 0.01, weight decay 1e-5, batch 256, 28 epochs, x0.1 at 10 and 20. The rate goes
    with the scale of the features; where it is unknown, ``batch_norm`` with a rate of about 0.1 is a safe choice.

    Args:
        backbone: the pretrained network, e.g. ``vision_model(..., num_classes=0, checkpoint=...)``; frozen in place.
        num_classes: number of logits; from the command line it comes from the data.
        layer: where its features are, see :class:`lit_kd.models.embedding.PooledFeatures`; None: those under the
            classifier.
        batch_norm: scale the features by a batch norm without weights first.
        image_shape: (C, H, W) of an example; from the command line it comes from the data.
        optimizer: see :class:`Distill`.
        lr_scheduler: see :class:`Distill`.

    Raises:
        ValueError: the backbone has no such layer, or no features of one size there.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        layer: str | None = None,
        batch_norm: bool = False,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_network(backbone=backbone)
        network = LinearOnFeatures(FrozenTeacher(backbone), num_classes, layer, batch_norm, image_shape)
        super().__init__(network, num_classes, optimizer=optimizer, lr_scheduler=lr_scheduler)
        add_top5(self)

    def evaluate(self, batch: Batch, metrics: MetricCollection) -> tuple[Tensor, Tensor]:
        """Top-5 accuracy as well."""
        return update_top5(metrics, *super().evaluate(batch, metrics))

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """SGD 10, momentum 0.9."""
        return SGD(parameters, lr=10.0, momentum=0.9)

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Cosine to 0 over the epochs."""
        return CosineAnnealingLR(optimizer, T_max=self.planned_epochs)


class FineTune(Classifier):
    """Fine-tuning of a whole pretrained network under a new linear classifier, with 1 % or 10 % of the labels.

    The share of the labels is an option of the data (``train_fraction``, of each class). The checkpoint holds
    backbone and head, as ``network.backbone.*`` and ``network.head.*``. What the features do not depend on, such as
    the backbone's own classifier, is frozen.

    Recipe (ImageNet, ResNet-50): SGD, 2e-4 for the backbone and 0.5 for the head, momentum 0.9, no weight decay,
    batch 256, synchronised batch norm; 40 epochs for 1 % and 20 for 10 %, x0.2 after 3/5 and 4/5 of them.

    Args:
        backbone: the pretrained network, trained in place.
        num_classes: number of logits; from the command line it comes from the data.
        layer: where its features are, see :class:`LinearEvaluation`.
        backbone_lr: rate of the backbone in the default optimizer.
        head_lr: rate of the head in the default optimizer.
        freeze_norm_stats: keep the running statistics of batch norms and normalise by them; their weights still
            learn. For batches that are too small or too unlike the pretraining's.
        image_shape: (C, H, W) of an example; from the command line it comes from the data.
        optimizer: see :class:`Distill`; one rate for all parameters.
        lr_scheduler: see :class:`Distill`.

    Raises:
        ValueError: see :class:`LinearEvaluation`; a rate is negative.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        layer: str | None = None,
        backbone_lr: float = 2e-4,
        head_lr: float = 0.5,
        freeze_norm_stats: bool = False,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_not_negative(backbone_lr=backbone_lr, head_lr=head_lr)
        network = LinearOnFeatures(backbone, num_classes, layer, image_shape=image_shape)
        super().__init__(network, num_classes, optimizer=optimizer, lr_scheduler=lr_scheduler)
        self.backbone_lr, self.head_lr = backbone_lr, head_lr
        self.freeze_norm_stats = freeze_norm_stats
        add_top5(self)
        with torch.enable_grad(), eval_mode(network):
            freeze_unused(network, network(torch.zeros(1, *image_shape)))

    def train(self, mode: bool = True) -> "FineTune":
        """Batch norms of the backbone stay in eval mode if their statistics are frozen."""
        super().train(mode)
        if self.freeze_norm_stats:
            for part in self.network.backbone.modules():  # type: ignore[union-attr]
                if getattr(part, "running_mean", None) is not None:
                    part.eval()
        return self

    def evaluate(self, batch: Batch, metrics: MetricCollection) -> tuple[Tensor, Tensor]:
        """Top-5 accuracy as well."""
        return update_top5(metrics, *super().evaluate(batch, metrics))

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """SGD with a rate each for backbone and head, momentum 0.9."""
        head = set(self.network.head.parameters())  # type: ignore[union-attr]
        groups = [
            {"params": [p for p in parameters if p not in head], "lr": self.backbone_lr},
            {"params": [p for p in parameters if p in head], "lr": self.head_lr},
        ]
        return SGD(groups, momentum=0.9)

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """x0.2 after 3/5 and 4/5 of the epochs."""
        epochs = self.planned_epochs
        return MultiStepLR(optimizer, sorted({max(1, round(epochs * part)) for part in (0.6, 0.8)}), gamma=0.2)


def add_top5(module: Classifier) -> None:
    """Let validation and test measure top-5 accuracy where it says more than top-1."""
    if module.num_classes > 5:
        for metrics in (module.val_metrics, module.test_metrics):
            metrics.add_metrics({"acc5": MulticlassAccuracy(module.num_classes, top_k=5, average="micro")})


def update_top5(metrics: MetricCollection, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Count a batch, after the other metrics of the collection; logits and label."""
    if "acc5" in metrics:
        metrics["acc5"].update(logits, label)
    return logits, label

"""An image classifier: supervised training, and the evaluation that every image method shares."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from lit_kd.checks import check_network, check_positive, check_whole
from lit_kd.datamodules.batch import Batch, unpack
from lit_kd.methods.base import Distill
from lit_kd.models.compiled import unwrapped
from lit_kd.models.factory import Normalize


class Classifier(Distill):
    """Cross-entropy at a temperature, ``CE(logits / T, label)``: teachers, and students without a teacher.

    Recipe (RepDistiller, arXiv:1910.10699): SGD 0.05, momentum 0.9, weight decay 5e-4, batch 64, 240 epochs, x0.1 after
    5/8, 6/8 and 7/8 of them (150, 180, 210). MobileNetV2 and the ShuffleNets used 0.01.

    Args:
        network: any module from images (B, C, H, W) in [0, 1] to logits (B, num_classes).
        num_classes: number of logits; from the command line it comes from the data.
        temperature: of the softmax while training; evaluation uses the raw logits.
        optimizer: see :class:`Distill`.
        lr_scheduler: see :class:`Distill`.

    Raises:
        ValueError: the network says that it has another number of classes, or a temperature that is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        temperature: float = 1.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_network(network=network)
        check_whole(2, num_classes=num_classes)
        check_positive(temperature=temperature)
        check_classes("network", network, num_classes)
        self.network = unwrapped(network)
        self.num_classes = num_classes
        self.temperature = temperature
        metrics = MetricCollection({"acc": MulticlassAccuracy(num_classes, average="micro"), "nll": MeanMetric()})
        self.val_metrics, self.test_metrics = metrics.clone(prefix="val/"), metrics.clone(prefix="test/")
        self.test_confusion = MulticlassConfusionMatrix(num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        logits = self.network(image)
        check_logits("network", logits, self.num_classes)
        return logits

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Look at the first batch: its labels, and that images come as the network takes them."""
        if batch_idx == 0:
            image, label, _ = unpack(batch)
            check_pixels(self.network, image)
            check_labels(label, self.num_classes)

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Look at its labels, too: a fit begins with a validation."""
        if batch_idx == 0:
            check_labels(unpack(batch)[1], self.num_classes)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy at the temperature."""
        image, label, index = unpack(batch)
        loss = F.cross_entropy(self(image) / self.temperature, label)
        return self.log_terms({"ce": loss}, len(label), index)

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy and negative log-likelihood (nats)."""
        self.evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same as in validation, and the confusion matrix."""
        logits, label = self.evaluate(batch, self.test_metrics)
        self.test_confusion.update(logits, label)

    def evaluate(self, batch: Batch, metrics: MetricCollection) -> tuple[Tensor, Tensor]:
        """Update and log the metrics; logits and labels."""
        image, label, _ = unpack(batch)
        logits = self(image).float()
        metrics["acc"].update(logits, label)
        metrics["nll"].update(F.cross_entropy(logits, label, reduction="none"))
        self.log_dict(metrics, batch_size=len(label), prog_bar=True)
        return logits, label

    def on_test_epoch_end(self) -> None:
        """Accuracy of each class that was left out of training, as ``test/acc_omitted_<class>``, and their mean."""
        data: Any = getattr(self.trainer, "datamodule", None)
        omitted: Sequence[int] = getattr(data, "omitted", ())
        if omitted:
            confusion = self.test_confusion.compute().double()
            accuracy = confusion.diag() / confusion.sum(1).clamp(min=1)
            self.log_dict({f"test/acc_omitted_{data.class_names[y]}": accuracy[y].float() for y in omitted})
            self.log("test/acc_omitted", accuracy[list(omitted)].mean().float())

    def on_test_epoch_start(self) -> None:
        """A test starts from an empty matrix."""
        self.test_confusion.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Probabilities, the predicted class and, where the data say, index and label."""
        image, label, index = unpack(batch)
        probability = self(image).float().softmax(1)
        prediction = {"probability": probability, "prediction": probability.argmax(1), "label": label}
        return prediction if index is None else {**prediction, "index": index}

    # Recipe

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """SGD 0.05, momentum 0.9, weight decay 5e-4."""
        return SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """x0.1 after 5/8, 6/8 and 7/8 of the epochs."""
        epochs = self.planned_epochs
        return MultiStepLR(optimizer, sorted({max(1, round(epochs * part)) for part in (0.625, 0.75, 0.875)}))


def check_classes(name: str, network: nn.Module, num_classes: int) -> None:
    """Raise a ValueError where a network says, as timm's do, that it has another number of classes."""
    own = getattr(network, "num_classes", None)
    if own is not None and own != num_classes:
        raise ValueError(
            f"The {name} has {own} classes but num_classes={num_classes}: give both the data's number of classes."
        )


def check_logits(name: str, logits: Tensor, num_classes: int) -> None:
    """Raise a ValueError where a network gives other logits than one for each class."""
    if logits.shape[1:] != (num_classes,):
        raise ValueError(f"The {name} gives logits of shape {tuple(logits.shape)} for num_classes={num_classes}.")


def check_labels(label: Tensor, num_classes: int) -> None:
    """Raise a ValueError where numbers of classes lie outside of them: on a GPU the process would end without one."""
    low, high = label.aminmax()
    if not label.is_floating_point() and (low < 0 or high >= num_classes):
        raise ValueError(
            f"Labels span [{low}, {high}] but num_classes={num_classes}: they must be from 0 to {num_classes - 1}."
        )


def check_pixels(network: nn.Module, image: Tensor) -> None:
    """Raise a ValueError where images outside [0, 1] meet a network that normalises its input."""
    if isinstance(getattr(network, "normalize", None), Normalize):
        low, high = image.aminmax()
        if low < 0 or high > 1:
            raise ValueError(
                f"Images span [{low:.3g}, {high:.3g}] but the network normalises pixels in [0, 1] itself: "
                "leave the normalisation out of the data, or build the network with normalize=False."
            )

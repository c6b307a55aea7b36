"""Fine-tuning of a text encoder that puts a sequence, or a pair, into a class or on a scale: the tasks of GLUE."""

from collections.abc import Sequence

import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassMatthewsCorrCoef

from lit_kd.language.glue import glue_task
from lit_kd.losses import kd_loss
from lit_kd.methods.encoder_fine_tuning import EncoderFineTune, entry
from lit_kd.models.text import TextBatch, known_inputs


class SequenceClassifier(EncoderFineTune):
    """One linear layer on the sequence, trained together with the encoder under it.

    Classes: cross-entropy, and with a teacher ``T^2 KL(teacher_T || network_T)``. One label: a regression by mean
    squared error, to the labels and to the teacher's values. Logged are ``val/loss`` and the task's metrics as
    ``val/<metric>`` (``test/...``); a second loader, MNLI's mismatched sentences, gives ``val/mismatched_<metric>``.

    Rates of the MiniLM paper: the best of 2e-5, 3e-5, 4e-5, 5e-5 by task, batch 32 (32 or 48 for its in-house
    students), 3 to 5 epochs, up to 10 for CoLA, RTE and MRPC; its 12x384 student 1.5e-5 on these three.

    A network of Hugging Face's for classification puts a tanh layer, the pooler, under its classifier; distilling
    MiniLM does not train it, so that it starts from what the checkpoint holds.

    Where the task is one of GLUE, logits are in the order of its classes: those of a network or teacher whose config
    names these classes in another order are put right, and a network with other names is given the task's.

    Args:
        network: with ``forward(input_ids, ...)`` that has ``logits`` (B, num_labels), for example
            ``text_encoder(path, head="sequence_classification", num_labels=...)``.
        num_labels: classes, or 1 for a regression; from the command line it comes from the data.
        task: of GLUE, which says the metrics; from the command line it comes from the data. None: accuracy, or
            Pearson's and Spearman's correlations.
        teacher: see :class:`EncoderFineTune`.
        teacher_labels: the task's classes in the order of the teacher's logits, where its config does not name them.
        temperature: see :class:`EncoderFineTune`.
        kd_weight: likewise.
        lr: likewise.
        optimizer: see :class:`lit_kd.methods.Distill`.
        lr_scheduler: likewise.

    Raises:
        ValueError: networks or a task with another number of labels, a teacher with unknown classes; see also
            :class:`EncoderFineTune`. In the first batch: labels that are missing or no classes.
    """

    def __init__(
        self,
        network: nn.Module,
        num_labels: int,
        task: str | None = None,
        teacher: nn.Module | None = None,
        teacher_labels: list[str] | None = None,
        temperature: float = 2.0,
        kd_weight: float = 0.5,
        lr: float = 2e-5,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(network, teacher, temperature, kd_weight, lr, optimizer, lr_scheduler)
        check_labels("network", known_labels(network), num_labels)
        self.num_labels = num_labels
        labels: Sequence[str] = ()
        names: Sequence[str] = ("accuracy",) if num_labels > 1 else ("pearson", "spearman")
        if task is not None:
            labels, names = glue_task(task).labels, glue_task(task).metrics
            check_labels(f"task {task!r}", glue_task(task).num_labels, num_labels)
        self.teacher_order: list[int] | None = None
        if teacher is not None:
            check_labels("teacher", known_labels(teacher), num_labels)
            self.teacher_order = class_order(teacher, labels, teacher_labels)
            if labels and self.teacher_order is None:
                raise ValueError(
                    f"The teacher's config does not name the classes {list(labels)} of {task!r}, so the order of its "
                    "logits is unknown: give teacher_labels, these names in the teacher's order."
                )
        self.order = class_order(network, labels)
        if labels and self.order is None:
            name_classes(network, labels)
        metrics = MetricCollection({"loss": MeanMetric(), **{name: make_metric(name, num_labels) for name in names}})
        self.val_metrics, self.test_metrics = metrics.clone(prefix="val/"), metrics.clone(prefix="test/")
        if task == "mnli":
            self.val_mismatched = metrics.clone(prefix="val/mismatched_")
            self.test_mismatched = metrics.clone(prefix="test/mismatched_")

    def forward(self, batch: TextBatch) -> Tensor:
        """Logits (B, num_labels)."""
        return ordered(self.network(**known_inputs(self.network, batch)).logits, self.order)

    # Training

    def on_train_batch_start(self, batch: TextBatch, batch_idx: int) -> None:
        """Look at the labels of the first batch."""
        if batch_idx == 0:
            self.labels(batch)

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """The loss of the task, and of the teacher's logits."""
        logits = self(batch)
        terms = {"mse" if self.num_labels == 1 else "ce": self.task_losses(logits, batch["labels"]).mean()}
        if self.teacher is not None:
            soft = self.teacher(**known_inputs(self.teacher.module, batch)).logits
            terms = self.weighted(terms, self.distillation_loss(logits, ordered(soft, self.teacher_order)))
        return self.log_terms(terms, len(logits), batch.get("index"))

    def task_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, nats, or squared error of each sample, (B,)."""
        if self.num_labels == 1:
            return F.mse_loss(logits.float().squeeze(1), labels.float(), reduction="none")
        return F.cross_entropy(logits.float(), labels, reduction="none")

    def distillation_loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """``T^2 KL``, or mean squared error for a regression."""
        if self.num_labels == 1:
            return F.mse_loss(logits.float(), teacher_logits.float())
        return kd_loss(logits, teacher_logits, self.temperature)

    # Evaluation

    def validation_step(self, batch: TextBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The task's metrics."""
        self.evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: TextBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.evaluate(batch, "test", dataloader_idx)

    def evaluate(self, batch: TextBatch, stage: str, dataloader_idx: int) -> None:
        """Update and log the metrics of a loader."""
        kind = "mismatched" if dataloader_idx else "metrics"
        metrics: MetricCollection | None = getattr(self, f"{stage}_{kind}", None)
        if metrics is None:
            raise ValueError("A second loader for evaluation belongs to task='mnli' alone: give one loader.")
        labels, logits = self.labels(batch), self(batch).float()
        for name, metric in metrics.items(keep_base=True):
            value = self.task_losses(logits, labels) if name == "loss" else self.predicted(logits)
            metric.update(value) if name == "loss" else metric.update(value, labels)
        self.log_dict(metrics, batch_size=len(labels), prog_bar=True, add_dataloader_idx=False)

    def predict_step(self, batch: TextBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Logits, the predicted class or value and, where the data say, index and labels."""
        logits = self(batch).float()
        given = {name: batch[name] for name in ("index", "labels") if name in batch}
        return {"logits": logits, "prediction": self.predicted(logits), **given}

    def predicted(self, logits: Tensor) -> Tensor:
        """Class int64 or value float32 of each sample, (B,)."""
        return logits.squeeze(1) if self.num_labels == 1 else logits.argmax(1)

    def labels(self, batch: TextBatch) -> Tensor:
        """Labels (B,) of a batch, looked at; a ValueError where they are missing or no classes."""
        labels = entry(batch, "labels")
        if self.num_labels > 1 and not bool(((labels >= 0) & (labels < self.num_labels)).all()):
            raise ValueError(
                f"Labels {labels.unique().tolist()} lie outside of 0..{self.num_labels - 1}: samples without a label, "
                "such as GLUE's test sets have, can only be predicted."
            )
        return labels


def make_metric(name: str, num_labels: int) -> Metric:
    """A metric of :class:`lit_kd.language.glue.GlueTask`, of predicted classes or values."""
    if name == "accuracy":
        return MulticlassAccuracy(num_labels, average="micro")
    if name == "matthews":
        return MulticlassMatthewsCorrCoef(num_labels)
    return {"f1": BinaryF1Score, "pearson": PearsonCorrCoef, "spearman": SpearmanCorrCoef}[name]()


def known_labels(network: nn.Module) -> int | None:
    """Number of labels in the network's Hugging Face config, if it has one."""
    return getattr(getattr(network, "config", None), "num_labels", None)


def check_labels(name: str, known: int | None, num_labels: int) -> None:
    """Raise a ValueError where something says that it has another number of labels."""
    if known is not None and known != num_labels:
        raise ValueError(f"The {name} has {known} labels but num_labels={num_labels}: give both the data's number.")


# The order of classes


def class_order(network: nn.Module, labels: Sequence[str], names: Sequence[str] | None = None) -> list[int] | None:
    """Position of each of the labels among a network's logits; None: its config names other classes.

    Args:
        network: of Hugging Face.
        labels: the task's classes.
        names: those of the network, in its order, in the place of its config's.

    Raises:
        ValueError: ``names`` are not the labels.
    """
    found = names or list((getattr(getattr(network, "config", None), "id2label", None) or {}).values())
    found = [name.lower().replace("-", "_").replace(" ", "_") for name in found]
    if labels and sorted(found) == sorted(labels):
        return [found.index(label) for label in labels]
    if names:
        raise ValueError(f"teacher_labels={list(names)} must be the classes {list(labels)} in another order.")
    return None


def name_classes(network: nn.Module, labels: Sequence[str]) -> None:
    """Write the names of its classes into a network's config: whoever loads it later knows their order."""
    config = getattr(network, "config", None)
    if config is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}


def ordered(logits: Tensor, order: list[int] | None) -> Tensor:
    """Columns of the logits in the order of the task's classes."""
    return logits if order is None else logits[:, order]

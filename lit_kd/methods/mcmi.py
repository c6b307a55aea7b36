"""MCMI distillation: teachers tuned for log-likelihood plus conditional mutual information, then any KD loss.

Ye et al., "Bayes conditional distribution estimation for knowledge distillation based on conditional mutual
information", ICLR 2024, arXiv:2401.08732; official code: iclr2024mcmi/ICLRMCMI.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torchmetrics import Metric

from lit_kd.checks import check_choice, check_image_shape, check_network, check_not_negative, check_whole
from lit_kd.datamodules.batch import Batch, unpack
from lit_kd.losses import mcmi_loss
from lit_kd.methods.classifier import Classifier, check_classes, check_logits
from lit_kd.models.card import Paper
from lit_kd.models.modes import eval_mode
from lit_kd.models.taps import FeatureTaps
from lit_kd.models.teacher import FrozenTeacher
from lit_kd.objectives import KD, DistillStep, Objective

PAPERS = (
    Paper(
        "Bayes Conditional Distribution Estimation for Knowledge Distillation Based on Conditional Mutual Information",
        "Linfeng Ye and Shayan Mohajer Hamidi and Renhao Tan and En-Hui Yang",
        2024,
        "2401.08732",
    ),
)


class ClassStatistics(Metric):
    """Sums over samples from which every number of the MCMI teacher follows, whatever the batches and ranks.

    With P_x = softmax(logits), n_y samples of class y and Q_y = (1/n_y) sum P_x:

        cmi            (1/n) sum_y n_y [H(Q_y) - mean H(P_x)]        nats
        log_likelihood (1/n) sum_x ln P_x[y]                         nats
        centroids      Q, (C, C), rows sum to 1

    Raises:
        ValueError: by ``compute``, a class has no sample: its centroid does not exist.
    """

    full_state_update = False
    probability: Tensor
    count: Tensor
    entropy: Tensor
    likelihood: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("probability", torch.zeros(num_classes, num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("count", "entropy", "likelihood"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add a batch: logits (B, C), label (B,)."""
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        self.probability.index_add_(0, label, p)
        self.count.index_add_(0, label, torch.ones_like(p[:, 0]))
        self.entropy.index_add_(0, label, -(p * log_p).sum(1))
        self.likelihood.index_add_(0, label, log_p.gather(1, label[:, None]).squeeze(1))

    def compute(self) -> dict[str, Tensor]:
        """``centroids`` (C, C), ``share`` n_y/n (C,), and the scalars ``cmi`` and ``log_likelihood``; all float64."""
        empty = (self.count == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"Classes {empty} have no training sample, so they have no centroid: leave no class out.")
        centroids = self.probability / self.count[:, None]
        share = self.count / self.count.sum()
        centroid_entropy = -torch.special.xlogy(centroids, centroids).sum(1)
        return {
            "centroids": centroids,
            "share": share,
            "cmi": (share * (centroid_entropy - self.entropy / self.count)).sum(),
            "log_likelihood": self.likelihood.sum() / self.count.sum(),
        }


class MCMITeacher(Classifier):
    """Stage 2: fine-tune a trained network for ``max LL + lambda CMI``.

        min  CE(z, y) - weight * mean_b KL(P_b || Q_{y_b}),   weight = lambda >= 0

    Q is the table of class centroids over the training set, taken in eval mode without augmentation and saved in the
    checkpoint. The paper and its code keep the table of the network as it came (``frozen``); ``epoch`` takes it anew
    before each epoch, which is block-coordinate ascent on the true CMI. With the frozen table the surrogate can also
    grow because the centroids drift: mean KL(P || R) = CMI + sum_y p(y) KL(Q_y || R_y). So both are logged, on the
    training set in eval mode: ``train_set/surrogate``, ``train_set/cmi``, ``train_set/log_likelihood`` (nats).

    Recipe: 20 epochs, SGD 0.05, momentum 0.9, weight decay 5e-4, cosine to 0 stepped once an epoch. Weight 0.15 for
    resnet56, 0.2 to 0.25 for others; above 0.4 students of vanilla KD collapse.

    Args:
        network: a network that was trained by cross-entropy.
        num_classes: number of logits; from the command line it comes from the data.
        weight: lambda. 0 is cross-entropy to the bit: the fair baseline of equal epochs.
        centroids: ``frozen`` or ``epoch``.
        measure_every_n_epochs: how often the whole training set is measured.
        optimizer: see :class:`Distill`.
        lr_scheduler: see :class:`Distill`.

    Raises:
        ValueError: a negative weight, an unknown choice of centroids; before the first step a class without a sample.
    """

    papers = PAPERS

    centroid_table: Tensor

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        weight: float = 0.15,
        centroids: Literal["frozen", "epoch"] = "frozen",
        measure_every_n_epochs: int = 1,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(network, num_classes, optimizer=optimizer, lr_scheduler=lr_scheduler)
        check_not_negative(weight=weight)
        check_choice(("frozen", "epoch"), centroids=centroids)
        check_whole(measure_every_n_epochs=measure_every_n_epochs)
        self.weight = weight
        self.centroids = centroids
        self.measure_every_n_epochs = measure_every_n_epochs
        self.register_buffer("centroid_table", torch.zeros(num_classes, num_classes))  # zeros: not taken yet
        self.statistics = ClassStatistics(num_classes)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Take the centroids, once (a resumed run has them in its checkpoint) or before each epoch."""
        # Not in on_train_epoch_start: Lightning 2.6 skips it when it resumes from the last batch of an epoch.
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx == 0 and (self.centroids == "epoch" or not self.centroid_table.any()):
            self.centroid_table.copy_(self.measure()["centroids"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """``CE - weight * mean KL(P || Q_y)``."""
        image, label, index = unpack(batch)
        loss = mcmi_loss(self(image), label, self.centroid_table, self.weight)
        return self.log_terms({"mcmi": loss}, len(label), index)

    def on_train_epoch_end(self) -> None:
        """Surrogate, true CMI and log-likelihood of the training set."""
        if (self.current_epoch + 1) % self.measure_every_n_epochs == 0:
            numbers = self.measure()
            names = ("surrogate", "cmi", "log_likelihood")
            self.log_dict({f"train_set/{name}": numbers[name].float() for name in names})

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """One pass over the training set in eval mode, summed over ranks: see :class:`ClassStatistics`.

        ``surrogate`` is mean KL(P || R) for the table R in use, from the same sums.
        """
        self.statistics.reset()
        with eval_mode(self.network):
            for batch in self._training_set():
                image, label, _ = unpack(self.trainer.strategy.batch_to_device(batch))
                self.statistics.update(self(image), label)
        numbers = self.statistics.compute()
        table = self.centroid_table.double().clamp(min=1e-12)
        drift = torch.special.xlogy(numbers["centroids"], numbers["centroids"] / table).sum(1)
        return {**numbers, "surrogate": numbers["cmi"] + (numbers["share"] * drift).sum()}

    def _training_set(self) -> Iterable[Any]:
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "train_eval_dataloader"):
            return data.train_eval_dataloader()
        rank_zero_warn(
            "The data module has no train_eval_dataloader(): centroids and CMI are taken from its training batches "
            "as they come, augmented, as the paper's code does."
        )
        loader: Any = self.trainer.train_dataloader
        return loader

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Cosine to 0 over the epochs."""
        return CosineAnnealingLR(optimizer, T_max=self.planned_epochs)


class MCMIDistill(Classifier):
    """Stage 3: a student learns from a frozen teacher, MCMI or not, by any objective.

    Few-shot and omitted-class studies are options of the data (``train_fraction``, ``samples_per_epoch``,
    ``omit_classes``); omitted classes are reported in the test, one accuracy each ("zero-shot" in the paper's words:
    the teacher has seen them, the student has not).

    Args:
        student: any module from images in [0, 1] to logits; it is the ``network`` of :class:`Classifier`.
        teacher: the trained network, e.g. ``vision_model(..., checkpoint=...)``; it is frozen and not saved again.
        num_classes: number of logits of both; from the command line it comes from the data.
        objective: a loss of :mod:`lit_kd.objectives`.
        image_shape: (C, H, W) of the example image by which everything is tried before training; from the command line
            it comes from the data.
        optimizer: see :class:`Distill`; None: the recipe of :class:`Classifier`.
        lr_scheduler: see :class:`Distill`.

    Raises:
        ValueError: teacher and student with different class counts, a feature path that does not exist.
    """

    papers = PAPERS

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        num_classes: int,
        objective: Objective | None = None,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_network(student=student, teacher=teacher)
        check_image_shape(image_shape)
        super().__init__(student, num_classes, optimizer=optimizer, lr_scheduler=lr_scheduler)
        check_classes("teacher", teacher, num_classes)
        self.teacher = FrozenTeacher(teacher)
        self.objective = KD() if objective is None else objective
        student, teacher = self.student, self.teacher.module  # without a wrapper of torch.compile
        self.student_taps = FeatureTaps(student, self.objective.student_paths(student))
        self.teacher_taps = FeatureTaps(teacher, self.objective.teacher_paths(teacher))
        self._probe(image_shape)

    @property
    def student(self) -> nn.Module:
        """The network that learns."""
        return self.network

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Look at the first batch: an objective with a memory asks for the index of each sample."""
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx == 0 and self.objective.needs_samples and unpack(batch)[2] is None:
            raise ValueError(
                f"{type(self.objective).__name__} remembers every training sample, but the batch has no 'index': give "
                "a dict with 'image', 'label' and 'index'."
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective's terms on what both networks say about the batch."""
        image, label, index = unpack(batch)
        return self.log_terms(self.objective(self.observe(image, label, index)), len(label), index)

    def observe(self, image: Tensor, label: Tensor, index: Tensor | None) -> DistillStep:
        """Logits and features of both networks."""
        with self.teacher_taps as teacher_features:
            teacher_logits = self.teacher(image)
        with self.student_taps as student_features:
            student_logits = self(image)
        return DistillStep(
            student_logits,
            teacher_logits,
            label,
            index,
            [student_features[path] for path in self.student_taps.paths],
            [teacher_features[path] for path in self.teacher_taps.paths],
            epoch=self.current_epoch,
        )

    def setup(self, stage: str) -> None:
        """Tell an objective with a memory of the training set what that set is."""
        if stage == "fit" and self.objective.needs_samples:
            data: Any = getattr(self.trainer, "datamodule", None)
            if not callable(getattr(data, "train_samples", None)):
                raise ValueError(
                    f"{type(self.objective).__name__} remembers every training sample: it needs a data module with "
                    "train_samples() -> (index, label), and batches that are dicts with an 'index'."
                )
            self.objective.set_samples(*data.train_samples())

    @torch.no_grad()
    def _probe(self, image_shape: tuple[int, int, int]) -> None:
        """Try everything on an example: class counts, features, what the objective builds for them, its terms."""
        image, label = torch.zeros(2, *image_shape), torch.zeros(2, dtype=torch.int64)
        with eval_mode(self.student):
            step = self.observe(image, label, None)
        check_logits("teacher", step.teacher_logits, self.num_classes)
        objective, counts = self.objective, (len(step.student_features), len(step.teacher_features))
        if counts[0] != counts[1]:
            raise ValueError(
                f"{type(objective).__name__} reads {counts[0]} features of the student and {counts[1]} of the teacher: "
                "choose as many of both by its student_layers and teacher_layers."
            )
        objective.build(step.student_features, step.teacher_features)
        if not objective.needs_samples:
            with eval_mode(objective):
                objective(step)

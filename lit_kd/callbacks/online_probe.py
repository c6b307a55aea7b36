"""A linear classifier that is trained beside the method, to see what its features know."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lit_kd.callbacks.network_probe import Counts, NetworkProbe, Stage, class_count
from lit_kd.checks import check_whole_or_none
from lit_kd.datamodules.batch import unpack


class OnlineLinearProbe(NetworkProbe):
    """Softmax regression on a network's pooled features, trained on the training batches while the module trains.

        logits = W (f - mean) / (std sqrt(C)) + b

    mean and std are running statistics of the features f (C,), so that one learning rate suits any network; W and b
    begin at zero, for the problem is convex. Logged: ``train/probe_<network>_loss`` and ``_acc`` (of the augmented
    training batches), ``val/probe_<network>_acc``, ``test/probe_<network>_acc``. It is a monitor: the number for a
    table comes from :class:`lit_kd.methods.LinearEvaluation`.

    The features are those of an own forward in eval mode before each training step. The head takes one step with
    each optimizer step of the module, on all batches since the last one and of all ranks: its statistics and
    gradients are summed over both, so that accumulation and devices change nothing but rounding. Head and optimizer
    are in the checkpoint, in this callback's state, and a resumed run equals the straight one.

    Args:
        network: see :class:`NetworkProbe`.
        layer: likewise.
        num_classes: None: what the module or the data module say.
        optimizer: called with the head's parameters; None: Adam with a rate of 0.1.

    Raises:
        ValueError: see :class:`NetworkProbe`; the classes are unknown; a label is too large for them; a checkpoint's
            head is of another size.
    """

    def __init__(
        self,
        network: str = "student",
        layer: str | None = None,
        num_classes: int | None = None,
        optimizer: OptimizerCallable | None = None,
    ) -> None:
        super().__init__(network, layer)
        check_whole_or_none(num_classes=num_classes)
        self.num_classes = num_classes
        self.make_optimizer = optimizer or _adam
        self._forget()

    def _forget(self) -> None:
        self.head: StandardizedLinear | None = None
        self._optimizer: Optimizer | None = None
        self._saved: dict[str, Any] = {}
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._counts = Counts()

    # Checkpoint

    @property
    def state_key(self) -> str:
        """One for each network and layer: several probes may watch one module."""
        return f"{type(self).__qualname__}({self.network}, {self.layer})"

    def state_dict(self) -> dict[str, Any]:
        """Head and optimizer."""
        if self.head is None or self._optimizer is None:
            return self._saved
        return {"head": self.head.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the features are seen."""
        self._forget()
        self._saved = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Each fit begins with a new head; Lightning loads a checkpoint after this. A test keeps the head."""
        if stage == "fit":
            self._forget()
        self._classes = class_count(self.num_classes, trainer, pl_module)

    def _build(self, features: Tensor) -> "StandardizedLinear":
        saved, size = self._saved, (self._classes, features.shape[1])
        if saved and saved["head"]["weight"].shape != size:
            raise ValueError(
                f"The checkpoint's probe of {self.network!r} is of size {tuple(saved['head']['weight'].shape)}, "
                f"but the module needs {size} (classes, features)."
            )
        with torch.inference_mode(False):  # the sanity check may come first
            head = StandardizedLinear(*size).to(features.device)
            self._optimizer = self.make_optimizer(head.parameters())
            if saved:
                head.load_state_dict(saved["head"])
                self._optimizer.load_state_dict(saved["optimizer"])
        self._saved = {}
        return head

    # Training

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the features before the module changes."""
        image, label, _ = unpack(batch)
        features = self.features(trainer, image)
        if self.head is None:
            self.head = self._build(features)
            if label.max() >= self._classes:
                raise ValueError(f"num_classes={self._classes} of the probe is too small for label {label.max()}.")
        self._waiting.append((features, label))
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Step if the module did."""
        if trainer.global_step == self._step:
            return
        features, label = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        known = label >= 0
        loss, right = self._learn(trainer, features[known], label[known])
        for name, value in (("loss", loss), ("acc", right)):
            name = f"train/probe_{self.network}_{name}"
            pl_module.log(name, value, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(label))

    def _learn(self, trainer: Trainer, features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """One step; mean loss (nats) and accuracy over all ranks before it."""
        assert self.head is not None and self._optimizer is not None
        reduce = trainer.strategy.reduce
        moments = reduce(self.head.moments(features), reduce_op="sum")
        self.head.update(moments)
        logits = self.head(features)
        loss = F.cross_entropy(logits, label, reduction="sum")
        count = moments[0, 0].clamp(min=1)
        self._optimizer.zero_grad()
        (loss / count).backward()
        for parameter in self.head.parameters():
            parameter.grad = reduce(parameter.grad, reduce_op="sum")
        self._optimizer.step()
        sums = reduce(torch.stack([loss.detach(), (logits.argmax(1) == label).sum().to(loss)]), reduce_op="sum")
        return (sums / count).unbind()  # type: ignore[return-value]

    # Evaluation

    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any, stage: Stage) -> None:
        """Count."""
        if self.head is None and not self._saved:
            return
        image, label, _ = unpack(batch)
        features = self.features(trainer, image)
        if self.head is None:
            self.head = self._build(features)
        self._counts.update(self.head(features).argmax(1), label)

    def report(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Log the accuracy; a head that was never trained has none."""
        if self.head is not None:
            pl_module.log(f"{stage}/probe_{self.network}_acc", self._counts.compute(trainer), sync_dist=True)
        self._counts = Counts()


class StandardizedLinear(nn.Module):
    """``W (f - mean) / (std sqrt(C)) + b`` with running mean and std, W and b zero at first.

    The scaled features have a mean square norm of 1, whatever their number and units, so the Hessian of the
    cross-entropy is at most 1/2 (but for the bias) and one learning rate suits any network.
    """

    mean: Tensor
    variance: Tensor
    updates: Tensor

    def __init__(self, num_classes: int, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, num_features))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("variance", torch.ones(num_features))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def moments(self, features: Tensor) -> Tensor:
        """Sums over a batch (B, C) of 1, f - mean and its square, (3, C): to be added over ranks."""
        shifted = features.float() - self.mean  # squares of differences from about the mean lose no digits
        return torch.stack([torch.full_like(self.mean, len(shifted)), shifted.sum(0), shifted.square().sum(0)])

    @torch.no_grad()
    def update(self, moments: Tensor) -> None:
        """Move mean and variance towards those of a batch: a plain average at first, then a tenth at a time."""
        count, first, second = moments
        batches = self.updates + 1
        rate = (1 / batches).clamp(min=0.1) * (count > 0)
        shift = first / count.clamp(min=1)
        variance = (second / count.clamp(min=1) - shift.square()).clamp(min=0)
        self.mean += rate * shift
        self.variance.lerp_(variance, rate)
        self.updates += (count[0] > 0).long()

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        scale = self.variance.shape[0] * (self.variance + 1e-5 * self.variance.mean()).clamp(min=1e-20)
        return F.linear((features.float() - self.mean) * scale.rsqrt(), self.weight, self.bias)


def _adam(parameters: Any) -> Optimizer:
    # On random resnet8 and vgg8 features of digits it was in 3 epochs where SGD with a rate of 1 was in 20.
    return Adam(parameters, lr=0.1)

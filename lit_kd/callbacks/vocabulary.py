"""The clock of online vocabularies."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lit_kd.models.vocabulary import Vocabulary, world_size


class OnlineVocabularyCallback(Callback):
    """Renews every :class:`lit_kd.models.Vocabulary` of a module once per optimizer step.

    The module's training step calls ``vocabulary.stage(words, distance)``, which changes nothing that it reads: within
    an effective batch, and from forward to backward, word k stays the same word. After the last backward, just before
    the optimizer steps, this callback commits what was staged by all micro-batches and ranks. Validation, sanity
    check, test and predict never move a vocabulary.

    Under DDP the words are left out of the broadcast of buffers before each forward (96 MiB a step for ResNet-50):
    they start equal on all ranks and stay so, as the gathered words are the same.

    Raises:
        ValueError: before the first batch: the module has no vocabulary, or an effective batch is larger than one.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the vocabularies, and take their words out of DDP's hands before it is built."""
        if stage != "fit":
            return
        names = [name for name, _ in _vocabularies(pl_module)]
        if not names:
            raise ValueError(f"{type(pl_module).__name__} has no Vocabulary among its sub-modules.")
        ignored = {*getattr(pl_module, "_ddp_params_and_buffers_to_ignore", ()), *(f"{name}.words" for name in names)}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pl_module, sorted(ignored))
        batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        if isinstance(batch_size, int):  # else the first step finds out
            for _, vocabulary in _vocabularies(pl_module):
                vocabulary.check_batch(batch_size * trainer.world_size * trainer.accumulate_grad_batches)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the words of rank 0."""
        for _, vocabulary in _vocabularies(pl_module):
            vocabulary.discard()
            if world_size() > 1:
                dist.broadcast(vocabulary.words, src=0)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Commit."""
        for _, vocabulary in _vocabularies(pl_module):
            vocabulary.commit()


def _vocabularies(pl_module: LightningModule) -> list[tuple[str, Vocabulary]]:
    return [(name, module) for name, module in pl_module.named_modules() if isinstance(module, Vocabulary)]

"""What ``predict`` found, in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save_file
from torch import Tensor

from lit_kd.files import replacing


class PredictionsWriter(BasePredictionWriter):
    """Writes the tensors that ``predict_step`` returns as ``predictions.safetensors``, one row a sample.

    The file lies in the run's log folder; of several devices each writes its own, ``predictions_<rank>.safetensors``,
    and no sample is in two. For a classifier: ``index``, ``label``, ``prediction`` and ``probability`` (N, C). With
    several loaders, such as MNLI's two, ``loader`` is the number of each sample's.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Join the batches and write them."""
        batches: list[dict[str, Tensor]] = list(predictions)
        if isinstance(predictions[0], list):
            batches = [
                {**batch, "loader": torch.full((len(batch["index"]),), number)}
                for number, loader in enumerate(predictions)
                for batch in loader
            ]
        joined = {name: torch.cat([batch[name].cpu() for batch in batches]) for name in batches[0]}
        name = "predictions" if trainer.world_size == 1 else f"predictions_{trainer.global_rank}"
        with replacing(Path(trainer.log_dir or trainer.default_root_dir) / f"{name}.safetensors") as temporary:
            save_file(joined, temporary)

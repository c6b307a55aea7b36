"""Batches of images, ours and other people's."""

from torch import Tensor

Batch = dict[str, Tensor] | tuple[Tensor, ...] | list[Tensor]


def unpack(batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Image, label and index of a batch: our dictionaries, or the (image, label) pairs of other data modules."""
    if isinstance(batch, dict):
        return batch["image"], batch["label"], batch.get("index")
    image, label = batch[0], batch[1]
    return image, label, None

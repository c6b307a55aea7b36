"""Batches of images, ours and other people's."""

from torch import Tensor

Batch = dict[str, Tensor] | tuple[Tensor, ...] | list[Tensor]


def unpack(batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Image, label and index of a batch: our dictionaries, or the (image, label) pairs of other data modules.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(batch, dict) and "image" in batch and "label" in batch:
        return batch["image"], batch["label"], batch.get("index")
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[0], batch[1], None
    found = ", ".join(map(repr, batch)) if isinstance(batch, dict) else type(batch).__name__
    raise ValueError(
        f"The batch is {found or 'empty'}: it must be a dict with 'image', 'label' and, where asked for, 'index', or "
        "a pair (image, label)."
    )

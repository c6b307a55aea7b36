"""Learning rate schedules that torch does not have."""

import math


def warmup_cosine(step: int, steps_an_epoch: int, epochs: int, warmup: int, end: float) -> float:
    """Factor of the learning rate: linear from 0 by step over ``warmup`` epochs, then a cosine by epoch to ``end``.

    For :class:`torch.optim.lr_scheduler.LambdaLR`, stepped by iteration.

    Example:
        >>> [round(warmup_cosine(10 * epoch, 10, 200, 10, 1e-3), 4) for epoch in (0, 5, 10, 105, 200)]
        [0.0, 0.5, 1.0, 0.5005, 0.001]
    """
    if step < warmup * steps_an_epoch:
        return step / (warmup * steps_an_epoch)
    progress = (step // steps_an_epoch - warmup) / (epochs - warmup)
    return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2


def warmup_linear(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear from 0 over ``warmup`` of the ``steps``, then linear to 0.

    For :class:`torch.optim.lr_scheduler.LambdaLR`, stepped by iteration.

    Example:
        >>> [warmup_linear(step, 100, 10) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return step / warmup if step < warmup else max(0, steps - step) / max(1, steps - warmup)


def cosine(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear from 0 over ``warmup`` of the ``steps``, then half a cosine by step to 0.

    For :class:`torch.optim.lr_scheduler.LambdaLR`, stepped by iteration.

    Example:
        >>> [round(cosine(step, 110, 10), 4) for step in (0, 5, 10, 60, 110)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return step / warmup
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))) / 2

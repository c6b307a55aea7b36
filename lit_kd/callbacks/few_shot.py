"""Few-shot episodes with cosine prototypes, as OBoW (arXiv:2012.11552) and its predecessors evaluate."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_kd.callbacks.network_probe import NetworkProbe, Stage, gather_rows
from lit_kd.checks import check_list, check_whole
from lit_kd.datamodules.batch import unpack


def few_shot_accuracy(
    features: Tensor, labels: Tensor, ways: int, shots: int, queries: int, episodes: int, seed: int = 0
) -> tuple[float, float]:
    r"""Mean accuracy over random episodes of nearest cosine prototypes, and half the width of its 95 % interval.

    An episode draws ``ways`` classes, and of each class ``shots`` support samples and ``queries`` others, all without
    replacement. With the hat for division by the Euclidean norm, a query q gets the class of the largest

    .. math:: \langle \hat q, \hat p_c \rangle, \quad p_c = \frac1n \sum_{i \in S_c} \hat f_i

    The interval is 1.96 standard errors of the mean over episodes. The draws depend on ``seed``, the labels and their
    order alone; torch's own random state is not touched.

    Args:
        features: f, (N, C).
        labels: (N,) int64; samples with a negative one are left out.
        ways: classes an episode.
        shots: support samples a class.
        queries: queries a class.
        episodes: how many; at least 2 for an interval, which is else NaN.
        seed: of the draws.

    Raises:
        ValueError: a count is not positive, or fewer than ``ways`` classes have ``shots + queries`` samples.

    Example:
        >>> few_shot_accuracy(torch.eye(2).repeat_interleave(3, 0), torch.tensor([0, 0, 0, 1, 1, 1]), 2, 1, 2, 10)
        (1.0, 0.0)
    """
    check_whole(2, ways=ways)
    check_whole(shots=shots, queries=queries, episodes=episodes)
    check_whole(0, seed=seed)
    labels = labels.cpu()
    classes, counts = labels[labels >= 0].unique(return_counts=True)
    classes = classes[counts >= shots + queries]
    if len(classes) < ways:
        raise ValueError(
            f"ways={ways} with shots={shots} and queries={queries}: only {len(classes)} classes have "
            f"{shots + queries} samples."
        )
    members = {int(c): (labels == c).nonzero()[:, 0] for c in classes}
    features = F.normalize(features, dim=1)
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(ways, device=features.device)[:, None]
    accuracies = []
    for _ in range(episodes):
        drawn = []  # positions, (ways, shots + queries)
        for c in classes[torch.randperm(len(classes), generator=generator)[:ways]].tolist():
            order = torch.randperm(len(members[c]), generator=generator)
            drawn.append(members[c][order[: shots + queries]])
        episode = features[torch.stack(drawn).to(features.device)]  # (ways, shots + queries, C)
        prototypes = F.normalize(episode[:, :shots].mean(1), dim=1)
        scores = episode[:, shots:] @ prototypes.T  # (ways, queries, ways)
        accuracies.append((scores.argmax(2) == truth).double().mean())
    each = torch.stack(accuracies)
    return float(each.mean()), float(1.96 * each.std() / math.sqrt(episodes)) if episodes > 1 else math.nan


class FewShotEpisodes(NetworkProbe):
    """Logs ``test/fewshot_<ways>way_<shots>shot_<network>_acc`` and ``..._ci95`` of :func:`few_shot_accuracy`.

    The episodes are drawn from the test samples of the first loader, over all ranks. Batches with an ``index`` are
    sorted by it, so that the episodes are the same on any number of devices. OBoW reports 200 episodes of 50 ways,
    1 and 5 shots and one query on ImageNet classes that training had not seen.

    Args:
        network: see :class:`NetworkProbe`.
        layer: likewise.
        ways: classes an episode.
        shots: support samples a class; one number of the report each.
        queries: queries a class.
        episodes: how many.
        seed: of the draws.

    Raises:
        ValueError: see :class:`NetworkProbe` and :func:`few_shot_accuracy`.
    """

    stages = ("test",)

    def __init__(
        self,
        network: str = "student",
        layer: str | None = None,
        ways: int = 5,
        shots: tuple[int, ...] = (1, 5),
        queries: int = 15,
        episodes: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(network, layer)
        check_whole(2, ways=ways)
        check_list(shots=shots)
        for number in shots:
            check_whole(shots=number)
        check_whole(0, seed=seed)
        check_whole(queries=queries, episodes=episodes)
        self.ways, self.shots, self.queries = ways, tuple(shots), queries
        self.episodes, self.seed = episodes, seed
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def begin(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Begin anew."""
        self._seen = []

    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any, stage: Stage) -> None:
        """Keep the features."""
        image, label, _ = unpack(batch)
        index = batch["index"] if isinstance(batch, dict) and "index" in batch else torch.zeros_like(label)
        self._seen.append((self.features(trainer, image), label, index))

    def report(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Draw the episodes and log; every rank draws the same."""
        features, labels, index = (gather_rows(trainer, torch.cat(parts)) for parts in zip(*self._seen, strict=True))
        self._seen = []
        order = index.argsort(stable=True)
        for shots in self.shots:
            mean, half_width = few_shot_accuracy(
                features[order], labels[order], self.ways, shots, self.queries, self.episodes, self.seed
            )
            name = f"test/fewshot_{self.ways}way_{shots}shot_{self.network}"
            pl_module.log_dict({f"{name}_acc": mean, f"{name}_ci95": half_width}, sync_dist=True)

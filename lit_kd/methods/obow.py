"""OBoW: self-supervision by online bags of visual words.

Gidaris et al., "OBoW: Online Bag-of-Visual-Words Generation for Self-Supervised Learning", CVPR 2021,
arXiv:2012.11552; official code: valeoai/obow.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lit_kd.callbacks.ema import EMATeacherCallback
from lit_kd.callbacks.vocabulary import OnlineVocabularyCallback
from lit_kd.checks import check_choice, check_image_shape, check_network, check_positive, check_whole
from lit_kd.datamodules.augment import counter_uniform
from lit_kd.datamodules.batch import Batch, unpack
from lit_kd.losses import WordDistances, bow_loss, bow_perplexity
from lit_kd.losses.bow import MAX_ELEMENTS, Pool
from lit_kd.methods.base import Distill
from lit_kd.methods.classifier import check_pixels
from lit_kd.methods.schedules import warmup_cosine
from lit_kd.models.card import Paper
from lit_kd.models.compiled import unwrapped
from lit_kd.models.ema import EMATeacher
from lit_kd.models.levels import check_map, freeze_unused, last_stages
from lit_kd.models.modes import eval_mode
from lit_kd.models.taps import FeatureTaps
from lit_kd.models.vocabulary import BoWHead, BoWHeads, Vocabulary
from lit_kd.models.word_classifier import word_classifier

PAPERS = (
    Paper(
        "OBoW: Online Bag-of-Visual-Words Generation for Self-Supervised Learning",
        "Spyros Gidaris and Andrei Bursuc and Gilles Puy and Nikos Komodakis and Matthieu Cord and Patrick Pérez",
        2021,
        "2012.11552",
    ),
)

T = TypeVar("T")
_PLACES = 0x0B0E  # the seed of the places where words are taken: not that of the views


class OBoWModule(Distill):
    """A student predicts, from crops, which visual words its moving teacher finds in the whole image.

    One step, for each level of the teacher's maps with vocabulary V, mean distance mu, and images b:

        teacher    theta_T <- a_t theta_T + (1 - a_t) theta_S                   before the step
        student    z = kappa f W^T,  W = G(V),  f = mean over places            one forward for each group of crops
        target     y = L1(max_u softmax_k(-inverse_delta / mu |x_u - v_k|^2))   x: teacher's map without its border
        loss       sum over groups of crops, mean over levels, mean over crops of KL(y || softmax(z))
        words      V <- one new word an image, the oldest leave                 after the backward

    mu contains the batch's own distances before it is used. Teacher, vocabularies, mu and the clock t change once per
    optimizer step, by the callbacks that this module brings along; never in validation or another forward. Under
    gradient accumulation all micro-batches have one teacher and one vocabulary, and mu is that of the batches so far.

    Batches are dicts: ``image`` (B, 3, S, S) in [0, 1] is the teacher's view, ``crops`` a list with one tensor
    (B * n_g, 3, s_g, s_g) for each group, image-major. Data modules of this library give them by their argument
    ``views``. With ``index`` and ``visit`` in the batch, the places of new words are functions of these: equal over
    devices and accumulation. Otherwise they are drawn. What is pretrained is the student; nothing else is evaluated.

    Recipe of ResNet-50 (full, the defaults): 200 epochs, batch 256, SGD 0.03, momentum 0.9, weight decay 1e-4 on all
    parameters, linear warm-up from 0 by iteration over a twentieth of the epochs, then a cosine by epoch to a
    thousandth. ResNet-18: inverse_delta 10, kappa 5, SGD 0.05, weight decay 5e-4, no warm-up. Vanilla: one level,
    one group of one crop.

    Differences from the official code: any batch size up to K, accumulation, exact perplexities, and for small maps
    ``border`` and ``pool_kernel``.

    Args:
        student: a network with maps, e.g. ``vision_model("resnet50", num_classes=0)``. Parameters behind the deepest
            level, such as a classifier, take no part and are frozen.
        levels: dotted paths of maps (B, C, H, W), shallow to deep, or the number of last stages that timm names. The
            mean of the deepest one is the student's feature f.
        num_words: K, of each level.
        inverse_delta: sharpness of the codes, one or one a level; None assigns each place to its nearest word.
        kappa: inverse temperature of the prediction.
        learn_kappa: learn it; the published runs do not.
        pool: ``max`` or ``avg`` over places.
        border: rows and columns of the map that are dropped on each side, one or one a level.
        pool_kernel: new words are means over pool_kernel^2 places, one or one a level; 1: of single places; None: of
            the whole map.
        momentum: of the teacher at the start, a_0.
        momentum_schedule: ``cosine``, to 1 over the optimizer steps of the run, or ``constant``.
        teacher_buffers: see :class:`lit_kd.models.EMATeacher`.
        teacher_mode: likewise; the published teacher is in train mode.
        image_shape: (3, S, S) of the teacher's view; from the command line it comes from the data.
        seed: of the places where words are taken.
        max_elements: distances held at once, see :class:`lit_kd.losses.WordDistances`.
        optimizer: see :class:`Distill`.
        lr_scheduler: see :class:`Distill`.

    Raises:
        ValueError: a level that does not exist, has no places or is too small; a list of another length than the
            levels; a temperature or size that is not positive; images of other than three channels; before the first
            step more images than words.
    """

    papers = PAPERS

    schedule_interval = "step"

    def __init__(
        self,
        student: nn.Module,
        levels: int | list[str] = 2,
        num_words: int = 8192,
        inverse_delta: float | list[float | None] | None = 15.0,
        kappa: float = 8.0,
        learn_kappa: bool = False,
        pool: Pool = "max",
        border: int | list[int] = 1,
        pool_kernel: int | list[int | None] | None = 3,
        momentum: float = 0.99,
        momentum_schedule: Literal["cosine", "constant"] = "cosine",
        teacher_buffers: Literal["none", "copy", "ema"] = "none",
        teacher_mode: Literal["train", "eval"] = "train",
        image_shape: tuple[int, int, int] = (3, 224, 224),
        seed: int = 0,
        max_elements: int = MAX_ELEMENTS,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_network(student=student)
        check_image_shape(image_shape)
        check_channels(image_shape)
        check_choice(("max", "avg"), pool=pool)
        check_choice(("cosine", "constant"), momentum_schedule=momentum_schedule)
        check_choice(("none", "copy", "ema"), teacher_buffers=teacher_buffers)
        check_choice(("train", "eval"), teacher_mode=teacher_mode)
        check_whole(max_elements=max_elements)
        check_whole(0, seed=seed)
        student = unwrapped(student)
        self.levels = last_stages(student, levels) if isinstance(levels, int) else list(levels)
        if not self.levels:
            raise ValueError("levels must name at least one map.")
        self.inverse_delta = self._each("inverse_delta", inverse_delta)
        for value in self.inverse_delta:
            if value is not None:
                check_positive(inverse_delta=value)
        self.pool: Pool = pool
        self.image_shape = tuple(image_shape)
        self.seed = seed
        self.max_elements = max_elements

        self.student = student
        self.teacher = EMATeacher(student, momentum, momentum_schedule, buffers=teacher_buffers, mode=teacher_mode)
        self.student_taps = FeatureTaps(student, self.levels)
        self.teacher_taps = FeatureTaps(self.teacher.module, self.levels)
        maps = self._probe()
        channels = maps[-1].shape[1]
        sizes = zip(maps, self._each("border", border), self._each("pool_kernel", pool_kernel), strict=True)
        self.vocabularies = nn.ModuleList(Vocabulary(num_words, m.shape[1], edge, kernel) for m, edge, kernel in sizes)
        self.heads = BoWHeads(BoWHead(m.shape[1], channels, kappa, learn_kappa) for m in maps)
        for (path, vocabulary, _), found in zip(self._parts, maps, strict=True):
            height, width = found.shape[2:]
            if min(height, width) < vocabulary.smallest_map:
                whole = "x".join(map(str, image_shape[1:]))
                raise ValueError(f"Level {path!r} has, of {whole} images, {vocabulary.too_small(height, width)}.")

    # Models

    @property
    def network(self) -> nn.Module:
        """What the run is for: the student."""
        return self.student

    @property
    def _parts(self) -> list[tuple[str, Vocabulary, BoWHead]]:
        return list(zip(self.levels, self.vocabularies, self.heads, strict=True))  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """The student's features f (B, C): mean over places of its deepest level."""
        with self.student_taps as maps:
            self.student(image)
        return maps[self.levels[-1]].float().mean((2, 3))

    def configure_callbacks(self) -> list[Callback]:
        """What changes once per optimizer step: the teacher before it, the vocabularies at its end."""
        return [*super().configure_callbacks(), EMATeacherCallback(), OnlineVocabularyCallback()]

    # Steps

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Look at the first batch."""
        if batch_idx == 0:
            image, _ = views(batch)
            check_channels(image.shape[1:])
            if image.shape[1:] != self.image_shape:
                raise ValueError(
                    f"The teacher's view is {tuple(image.shape[1:])} but image_shape={self.image_shape}: "
                    "make them equal."
                )
            check_pixels(self.student, image)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Bags of words of the teacher's view, predicted from each group of crops."""
        image, crops = views(batch)
        features = [self(group) for group in crops]
        logits = self.heads(torch.cat(features), [vocabulary.words for _, vocabulary, _ in self._parts])
        targets = self.targets(image, self._places(batch))
        terms = {}
        groups = zip(*(level.split([len(group) for group in crops]) for level in logits), strict=True)
        for number, (crop, levels) in enumerate(zip(crops, groups, strict=True)):
            divergences = [bow_loss(z, y, len(crop) // len(image)) for z, y in zip(levels, targets, strict=True)]
            terms[f"kl_{number}_{crop.shape[-1]}px"] = torch.stack(divergences).mean()
        self._log_levels(targets)
        return self.log_terms(terms, len(image), batch.get("index") if isinstance(batch, dict) else None)

    @torch.no_grad()
    def targets(self, image: Tensor, uniforms: Tensor | None = None) -> list[Tensor]:
        """Bags of words (B, K) of each level; stages the new words for the callback, and changes nothing else.

        Args:
            image: the teacher's view, (B, 3, S, S).
            uniforms: (B, levels) in [0, 1), places of the new words; None: drawn.
        """
        with self.teacher_taps as maps:
            self.teacher(image)
        targets = []
        for level, (path, vocabulary, _) in enumerate(self._parts):
            places = vocabulary.crop(maps[path])
            words = vocabulary.sample(places, None if uniforms is None else uniforms[:, level])
            distances = WordDistances(places, vocabulary.words, self.max_elements)
            mean_distance = vocabulary.stage(words, distances.nearest.mean())
            targets.append(distances.target(self.inverse_delta[level], mean_distance, self.pool))
        return targets

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing of its own: the evaluators among the callbacks look at the batch."""

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation."""

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Features of the student and, where the data say, index and label."""
        image, label, index = unpack(batch)
        prediction = {"feature": self(image), "label": label}
        return prediction if index is None else {**prediction, "index": index}

    def _places(self, batch: Batch) -> Tensor | None:
        if isinstance(batch, dict) and {"index", "visit"} <= batch.keys():
            return counter_uniform(self.seed ^ _PLACES, batch["visit"], batch["index"], len(self.levels))
        return None

    def _log_levels(self, targets: list[Tensor]) -> None:
        numbers: dict[str, Any] = {"train/momentum": self.teacher.momentum_at(max(0, int(self.teacher.clock) - 1))}
        for (path, vocabulary, _), target in zip(self._parts, targets, strict=True):
            name = path.removeprefix("backbone.")
            numbers[f"train/perplexity_image_{name}"] = bow_perplexity(target).mean()
            numbers[f"train/perplexity_batch_{name}"] = bow_perplexity(target.mean(0))
            numbers[f"train/mean_distance_{name}"] = vocabulary.mean_distance
        self.log_dict(numbers, batch_size=len(targets[0]), on_step=False, on_epoch=True)

    # Export

    @torch.no_grad()
    def word_classifier(self, level: int = -1) -> nn.Module:
        """The student as a classifier of the visual words of a level: its classifier is kappa * G(V), without a bias.

        G normalises by the words themselves, as in training (the official export takes running statistics). For a
        ResNet by ``vision_model`` it is a ``vision_model`` with K classes, to be written by ``save_exported``.
        """
        _, vocabulary, head = self._parts[level]
        weight = head.kappa * copy.deepcopy(head).train().weights(vocabulary.words)
        return word_classifier(self.student, self.levels[-1], weight)

    # Recipe

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """SGD 0.03, momentum 0.9, weight decay 1e-4."""
        return SGD(parameters, lr=0.03, momentum=0.9, weight_decay=1e-4)

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Linear warm-up by iteration over 1/20 of the epochs (10 of 200), cosine by epoch to 1/1000."""
        epochs = self.planned_epochs
        warmup = round(epochs / 20)
        # Step 0 needs no number, and must not ask for it.
        return LambdaLR(
            optimizer, lambda step: warmup_cosine(step, self.steps_an_epoch() if step else 1, epochs, warmup, 1e-3)
        )

    # Checks

    def _each(self, name: str, value: T | list[T]) -> list[T]:
        values = list(value) if isinstance(value, (list, tuple)) else [value] * len(self.levels)
        if len(values) != len(self.levels):
            raise ValueError(
                f"{name}={values} has {len(values)} values for the {len(self.levels)} levels {self.levels}."
            )
        return values

    def _probe(self) -> list[Tensor]:
        """Maps of all levels for an example; freezes what the student's feature does not depend on."""
        with torch.enable_grad(), eval_mode(self.student), self.student_taps as maps:
            self.student(torch.zeros(1, *self.image_shape))
        found = [check_map(self.student, path, maps.get(path)) for path in self.levels]
        idle = freeze_unused(self.student, found[-1])
        if idle:
            rank_zero_warn(
                f"{len(idle)} parameters of the student lie behind level {self.levels[-1]!r}, take no part in OBoW and "
                f"are frozen ({idle[0]}, ...): num_classes=0 builds a network without them."
            )
        return found


def views(batch: Any) -> tuple[Tensor, list[Tensor]]:
    """The teacher's view (B, C, S, S) and the groups of crops (B * n_g, C, s_g, s_g) of a batch.

    Raises:
        ValueError: the batch has no crops, or a group is no whole number of crops of each image.
    """
    if not isinstance(batch, dict) or not batch.get("crops"):
        raise ValueError(
            "OBoW needs batches that are dicts with 'image', the teacher's view, and 'crops', a list of tensors: give "
            "the data module its argument views."
        )
    image, crops = batch["image"], list(batch["crops"])
    for group in crops:
        if len(group) % len(image) or len(group) == 0:
            raise ValueError(
                f"{len(group)} crops are no whole number for each of the {len(image)} images of the batch."
            )
    return image, crops


def check_channels(shape: Sequence[int]) -> None:
    """Raise a ValueError unless images (C, H, W) have three channels."""
    if shape[0] != 3:
        raise ValueError(
            f"Images of shape {tuple(shape)} have {shape[0]} channels, but OBoW's views change colours: it needs 3, "
            "so repeat a grey image three times."
        )

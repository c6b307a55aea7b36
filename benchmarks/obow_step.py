"""Time of a step of OBoW, views included: plain PyTorch with views image by image, and lit_kd through Lightning.

    python -m benchmarks.obow_step [--parts]

The plain loop is section 0 of the specification (arXiv:2012.11552) as one would write it first: a dataset whose
__getitem__ makes each view with torchvision on a PIL image, distances as a 1x1 convolution, codes of the whole batch,
one multiply and add a tensor for the moving average. Both have the same networks, CIFAR-size random images, views of
the same kinds, and SGD; loading is in the process itself. A step lasts from the end of one batch to the end of the
next. The two alternate, a round each; the table holds the median over rounds of a round's median step, the range, and
the median over rounds of the ratio. The ratio is also given for CPU time, which other processes disturb less.

--parts: the codes of two levels at K = 8192 beside the two matrix products that they need, and the moving average.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from PIL import Image, ImageFilter
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from benchmarks.input_pipeline import RandomCIFAR10
from benchmarks.kd_step import WARM_UP, Clock
from lit_kd.datamodules import MultiCropViews
from lit_kd.losses import WordDistances
from lit_kd.methods import OBoWModule
from lit_kd.models import EMATeacher, vision_model

Run = Callable[[int], Tensor]  # from a number of steps to the median of their seconds: wall and CPU time, (2,)
CROP, PATCH, PATCHES, OFFSET = 24, 14, 5, 2  # pixels; 3 x 3 patches of 14 with offsets 0..2 every 8 pixels of 32


def blurred(image: Image.Image) -> Image.Image:
    """The blur of the official code."""
    return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


class PlainViews(Dataset[tuple[Tensor, list[Tensor]]]):
    """The views of one image at a time."""

    def __init__(self, pixels: Tensor) -> None:
        """Keep images, uint8 (N, 3, 32, 32), as numpy (N, 32, 32, 3)."""
        self.pixels = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        flip, tensor = T.RandomHorizontalFlip(), T.ToTensor()
        colour = [T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), T.RandomGrayscale(p=0.2)]
        blur = T.RandomApply([T.Lambda(blurred)], p=0.5)
        self.whole = T.Compose([flip, tensor])
        self.crop = T.Compose([T.RandomResizedCrop(CROP, scale=(0.08, 0.6)), *colour, blur, flip, tensor])
        self.grid = T.Compose([T.RandomResizedCrop(32, scale=(0.6, 1.0)), *colour, flip, tensor])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, list[Tensor]]:
        """The teacher's view, two crops and five of nine patches."""
        image = Image.fromarray(self.pixels[index])
        crops = torch.stack([self.crop(image) for _ in range(2)])
        grid = self.grid(image)
        patches = []
        for place in torch.randperm(9)[:PATCHES].tolist():
            top, left = (8 * number + int(torch.randint(OFFSET + 1, ())) for number in divmod(place, 3))
            patches.append(grid[:, top : top + PATCH, left : left + PATCH])
        return self.whole(image), [crops, torch.stack(patches)]


class PlainOBoW:
    """The step in plain PyTorch on the parts of a module."""

    def __init__(self, module: OBoWModule, total: int) -> None:
        """Copy networks, heads and words."""
        self.student, self.teacher = copy.deepcopy(module.student), copy.deepcopy(module.teacher.module)
        self.heads: list[Any] = list(copy.deepcopy(module.heads))
        self.words: list[Tensor] = [vocabulary.words.clone() for vocabulary in module.vocabularies]  # type: ignore[operator]
        self.mean = [torch.tensor(0.5) for _ in self.words]
        self.pointer, self.step, self.total = 0, 0, total
        trained = [*self.student.parameters(), *(p for head in self.heads for p in head.parameters())]
        self.optimizer = SGD([p for p in trained if p.requires_grad], lr=0.03, momentum=0.9, weight_decay=1e-4)

    @staticmethod
    def maps(network: Any, image: Tensor) -> list[Tensor]:
        """Maps of the last two stages."""
        net = network.backbone
        x = net.layer1(net.act1(net.bn1(net.conv1(network.normalize(image)))))
        middle = net.layer2(x)
        return [middle, net.layer3(middle)]

    @torch.no_grad()
    def targets(self, image: Tensor) -> list[Tensor]:
        """Moving average, distances, mean distance, new words, codes."""
        alpha = 1 - 0.01 * (1 + math.cos(math.pi * self.step / self.total)) / 2
        for own, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            own.mul_(alpha).add_(theirs, alpha=1 - alpha)
        targets = []
        for level, maps in enumerate(self.maps(self.teacher, image)):
            x = maps[:, :, 1:-1, 1:-1].contiguous()
            words = self.words[level]
            distance = F.conv2d(x, -2 * words[:, :, None, None], bias=words.square().sum(1))
            distance = x.square().sum(1, keepdim=True) + distance
            self.mean[level] = 0.99 * self.mean[level] + 0.01 * distance.amin(1).mean()
            pooled = F.avg_pool2d(x, 3, stride=1).flatten(2)
            place = torch.randint(pooled.shape[2], (len(image),))
            new = pooled[torch.arange(len(image)), :, place]
            bag = (-(15.0 / self.mean[level]) * distance).softmax(1).amax((2, 3))
            targets.append(F.normalize(bag, p=1, dim=1))
            self.words[level] = words.clone()
            self.words[level][self.pointer : self.pointer + len(image)] = new
        self.pointer = (self.pointer + len(image)) % len(self.words[0])
        return targets

    def train(self, image: Tensor, crops: list[Tensor]) -> None:
        """One step."""
        words = [words.clone() for words in self.words]
        features = [self.maps(self.student, crop.flatten(0, 1))[-1].mean((2, 3)) for crop in crops]
        weights = [head.weights(v) for head, v in zip(self.heads, words, strict=True)]
        targets = self.targets(image)
        losses = []
        for feature, crop in zip(features, crops, strict=True):
            logits = [torch.mm(feature * 8, weight.T) for weight in weights]
            rows = [target.repeat_interleave(crop.shape[1], 0) for target in targets]
            kl = [F.kl_div(z.log_softmax(1), y, reduction="batchmean") for z, y in zip(logits, rows, strict=True)]
            losses.append(torch.stack(kl).mean())
        loss = torch.stack(losses).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1


def plain(module: OBoWModule, data: RandomCIFAR10, batch_size: int) -> Run:
    """The loop over :class:`PlainOBoW`."""
    views = PlainViews(data.sets["train"].pixels)  # type: ignore[attr-defined]

    def run(steps: int) -> Tensor:
        clock = Clock()
        model = PlainOBoW(module, total=10_000)
        loader = DataLoader(views, batch_size, shuffle=True, drop_last=True)
        for number, (image, crops) in enumerate(loader):
            if number == WARM_UP + steps:
                break
            model.train(image, crops)
            clock.on_train_batch_end()
        return clock.step()

    return run


def lightning(module: OBoWModule, data: RandomCIFAR10) -> Run:
    """The module in a Trainer without logger, checkpoints and progress bar."""

    def run(steps: int) -> Tensor:
        clock = Clock()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=WARM_UP + steps,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(copy.deepcopy(module), data)
        return clock.step()

    return run


def steps(arguments: argparse.Namespace) -> None:
    """The table of whole steps."""
    seed_everything(0, verbose=False)
    views = MultiCropViews(
        teacher_resize=32,
        teacher_size=32,
        crop_size=CROP,
        patch_image_size=32,
        patch_size=PATCH,
        num_patches=PATCHES,
        max_offset=OFFSET,
    )
    data = RandomCIFAR10(batch_size=arguments.batch_size, views=views)
    data.setup("fit")
    student = vision_model(arguments.network, num_classes=0)
    module = OBoWModule(student, levels=2, num_words=arguments.words, image_shape=(3, 32, 32))
    runs = [plain(module, data, arguments.batch_size), lightning(module, data)]
    rounds = torch.stack(  # (rounds, variants, 2)
        [torch.stack([run(arguments.steps) for run in runs]) for _ in range(arguments.rounds)]
    )
    print(f"{'':<15} {'ms a step':>9} {'range':>15}  {'ratio':>5} {'(CPU)':>7}")
    for column, name in enumerate(("plain PyTorch", "lit_kd")):
        wall = 1000 * rounds[:, column, 0]
        ratio, cpu_ratio = (rounds[:, column] / rounds[:, 0]).quantile(0.5, dim=0).tolist()
        spread = f"{wall.min():.0f}-{wall.max():.0f}"
        print(f"{name:<15} {wall.quantile(0.5):9.0f} {spread:>15}  {ratio:5.3f} ({cpu_ratio:.3f})")
    teacher = EMATeacher(student, total_steps=10_000)
    average = seconds(lambda: teacher.update(student), 20)
    print(f"Of lit_kd's step the moving average is {average / float(rounds[:, 1, 1].quantile(0.5)):.2%}.")


def seconds(function: Callable[[], Any], rounds: int) -> float:
    """Median CPU seconds of a call after a first one."""
    function()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return float(torch.tensor(times).quantile(0.5))


def parts(arguments: argparse.Namespace) -> None:
    """The table of parts, in CPU time."""
    for name, channels in (("ResNet-50", (1024, 2048)), ("ResNet-18", (256, 512))):
        levels = [
            (torch.randn(arguments.images, c, size, size).relu(), torch.randn(8192, c).relu())
            for c, size in zip(channels, (12, 5), strict=True)
        ]
        rows = [maps.flatten(2).transpose(1, 2).flatten(0, 1).contiguous() for maps, _ in levels]

        def products(rows: list[Tensor] = rows, levels: list[tuple[Tensor, Tensor]] = levels) -> list[Tensor]:
            return [x @ words.T for x, (_, words) in zip(rows, levels, strict=True)]

        def codes(levels: list[tuple[Tensor, Tensor]] = levels) -> None:
            for maps, words in levels:
                distances = WordDistances(maps, words)
                distances.target(15.0, distances.nearest.mean())

        base, ours = seconds(products, arguments.rounds), seconds(codes, arguments.rounds)
        print(
            f"{name}, K = 8192, {arguments.images} images: products {1e3 * base:.0f} ms, codes {ours / base:.3f} times"
        )

    student = vision_model("resnet50", num_classes=0)
    teacher = EMATeacher(student, total_steps=100)
    update = seconds(lambda: teacher.update(student), arguments.rounds)

    @torch.no_grad()
    def one_by_one() -> None:
        for own, theirs in zip(teacher.module.parameters(), student.parameters(), strict=True):
            own.mul_(0.99).add_(theirs, alpha=0.01)

    loop = seconds(one_by_one, arguments.rounds)
    image = torch.rand(2, 3, 160, 160)
    step = seconds(lambda: student(image).mean().backward(), 3) / 2
    print(f"EMA of ResNet-50: {1e3 * update:.1f} ms, tensor by tensor {1e3 * loop:.1f} ms")
    print(
        f"A 160-pixel crop forward and backward: {1e3 * step:.0f} ms; EMA is {update / (128 * step):.2%} of 128 crops"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", action="store_true", help="codes and moving average instead of whole steps")
    parser.add_argument("--steps", type=int, default=6, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=8, help="images whose codes are measured")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--words", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")  # Lightning's advice on workers and devices
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, {vars(arguments)}")
    parts(arguments) if arguments.parts else steps(arguments)


if __name__ == "__main__":
    main()

"""A small training of every method and a small run of every stage that writes, and processes to do them harm in."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import obow_toy
import torch
from chat_toy import causal, saved
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from mgsr_toy import Dialogues
from mgsr_toy import network as causal_of
from minilm_toy import RandomTexts, encoder
from ssb_toy import as_if_accepted, as_if_answered
from synthesis_toy import Teacher, own_task, write_rows
from text_toy import TinyGLUE, TinySQuAD, classifier, reader
from torch import nn
from toy import quiet_trainer

from lit_kd.callbacks import OnlineLinearProbe
from lit_kd.datamodules import (
    ArithmeticDataModule,
    ChatDataModule,
    DigitsDataModule,
    HintsDataModule,
    SSBDataModule,
    TaskDataModule,
)
from lit_kd.language.chunkers import NgramChunker
from lit_kd.language.engines import Sampling
from lit_kd.losses import DACKL
from lit_kd.methods import (
    SCRG,
    Classifier,
    DefensiveDistill,
    FineTune,
    LanguageModel,
    LinearEvaluation,
    MCMIDistill,
    MCMITeacher,
    MGSRDistill,
    MiniLMDistill,
    QuestionAnswering,
    Refinement,
    Replay,
    Rollouts,
    SequenceClassifier,
    SSBDistill,
    Synthesis,
    SyntheticDistill,
    TeacherLogits,
)
from lit_kd.models import causal_lm, vision_model
from lit_kd.objectives import CRD, KD

Built = tuple[LightningModule, LightningDataModule]
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.2}


def networks(seed: int) -> tuple[nn.Module, nn.Module]:
    """A student with dropout, and the teacher, which is the same for every seed."""
    torch.manual_seed(0)
    teacher = vision_model("resnet8", 10)
    torch.manual_seed(seed)
    return vision_model("resnet8", 10, model_kwargs={"drop_rate": 0.5}), teacher


def digits() -> DigitsDataModule:
    """Six batches an epoch."""
    return DigitsDataModule(batch_size=4, samples_per_epoch=24, train_fraction=0.03, val_fraction=0.02)


def images(build: Callable[[nn.Module, nn.Module], LightningModule]) -> Callable[[Path, int], Built]:
    return lambda inputs, seed: (build(*networks(seed)), digits())


def obow(inputs: Path, seed: int) -> Built:
    torch.manual_seed(seed)
    return obow_toy.module(obow_toy.network(norm=True)), obow_toy.CropImages(batch_size=16)


def minilm(inputs: Path, seed: int) -> Built:
    student = encoder(seed=seed, hidden_size=12, hidden_dropout_prob=0.1)
    return MiniLMDistill(student, encoder(), "minilm", warmup_steps=2, lr=1e-3), RandomTexts(batch_size=8)


def glue(inputs: Path, seed: int) -> Built:
    network = classifier(seed=seed, dropout=0.3)
    names = ["negative", "positive"]
    return SequenceClassifier(network, 2, "sst2", classifier(), teacher_labels=names, lr=1e-3), TinyGLUE(samples=32)


def squad(inputs: Path, seed: int) -> Built:
    return QuestionAnswering(reader(seed, dropout=0.3), reader(), lr=1e-3), TinySQuAD(questions=16)


def adapted(inputs: Path, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return causal_lm(str(inputs / "base"), lora=LORA)


def language(inputs: Path, seed: int) -> Built:
    data = ArithmeticDataModule(tokenizer=str(inputs / "base"), samples=8, test_samples=4, batch_size=2)
    return LanguageModel(adapted(inputs, seed), sampling=Sampling(max_new_tokens=3), lr=1e-2), data


def ssb(inputs: Path, seed: int) -> Built:
    data = SSBDataModule(refined=str(inputs / "refined"), tokenizer=str(inputs / "base"), batch_size=2)
    return SSBDistill(adapted(inputs, seed), lr=1e-2), data


def synthetic(inputs: Path, seed: int) -> Built:
    chats, tokenizer = str(inputs / "chats.jsonl"), str(inputs / "base")
    data = ChatDataModule(chats=chats, tokenizer=tokenizer, packing=True, max_length=110, batch_size=2)
    return SyntheticDistill(adapted(inputs, seed), lr=1e-2), data


class Worse(Replay):
    """Every validation is worse than the one before, and phi grows."""

    def validated(self, loss: float) -> None:
        super().validated(loss if self.previous is None else self.previous + 1)


def mgsr(inputs: Path, seed: int) -> Built:
    path = str(inputs / "base")
    student = causal_of(path, seed, attention_dropout=0.3)
    source = SCRG(Worse(initial_phi=0.7, capacity=8, sampling=Sampling(max_new_tokens=8), max_length=32))
    settings: dict[str, Any] = {"span_weight": 1.0, "lr": 0.3, "subnet_lr_mult": 0.1}
    divergence = DACKL(top_k=8, hidden=4)
    return MGSRDistill(student, causal_of(path, 99), source, divergence, NgramChunker(2), **settings), Dialogues()


TRAININGS: dict[str, Callable[[Path, int], Built]] = {
    "Classifier": images(lambda student, teacher: Classifier(student, 10)),
    "MCMITeacher": images(lambda student, teacher: MCMITeacher(student, 10)),
    "MCMITeacher by epoch": images(lambda student, teacher: MCMITeacher(student, 10, centroids="epoch")),
    "MCMIDistill": images(lambda student, teacher: MCMIDistill(student, teacher, 10, KD())),
    "MCMIDistill CRD": images(lambda s, t: MCMIDistill(s, t, 10, CRD(feature_dim=8, num_negatives=16))),
    "DefensiveDistill": images(lambda student, teacher: DefensiveDistill(student, teacher, 10, hard_weight=0.1)),
    "LinearEvaluation": images(lambda student, teacher: LinearEvaluation(teacher, 10, image_shape=(3, 8, 8))),
    "FineTune": images(lambda student, teacher: FineTune(student, 10, image_shape=(3, 8, 8))),
    "OBoWModule": obow,
    "MiniLMDistill": minilm,
    "SequenceClassifier": glue,
    "QuestionAnswering": squad,
    "LanguageModel": language,
    "SSBDistill": ssb,
    "SyntheticDistill": synthetic,
    "MGSRDistill": mgsr,
}


def problems(inputs: Path) -> ArithmeticDataModule:
    return ArithmeticDataModule(tokenizer=str(inputs / "base"), samples=8, predict_on="train", eval_batch_size=2)


def rollouts(inputs: Path, folder: Path) -> Built:
    sampling = Sampling(samples=2, max_new_tokens=3)
    return Rollouts(str(folder), sampling, network=causal_lm(str(inputs / "base"))), problems(inputs)


def refinement(inputs: Path, folder: Path) -> Built:
    rows, template = str(inputs / "rollouts"), "{problem} Right: {right} Wrong: {wrong}"
    data = HintsDataModule(rollouts=rows, match="exact", template=template, eval_batch_size=2)
    network = causal_lm(str(inputs / "base"))
    return Refinement(str(folder), Sampling(max_new_tokens=3), attempts=1, network=network), data


def teacher_logits(inputs: Path, folder: Path) -> Built:
    data = SSBDataModule(refined=str(inputs / "refined"), tokenizer=str(inputs / "base"), eval_batch_size=2)
    return TeacherLogits(causal_lm(str(inputs / "base")), str(folder), top_k=300), data


def add(chat: Any, sampling: Any) -> str:
    """The reply of a teacher who can add."""
    return json.dumps({"reason": "I add.", "answer": eval(chat[-1]["content"].removeprefix("Q: "))})


def synthesis(inputs: Path, folder: Path) -> Built:
    task, root = str(inputs / "sums.yaml"), str(inputs / "sums")
    data = TaskDataModule(task=task, mode="cot", root=root, eval_batch_size=2, duplicates=None)
    return Synthesis(str(folder), engine=Teacher(add)), data


STAGES: dict[str, Callable[[Path, Path], Built]] = {
    "Rollouts": rollouts,
    "Refinement": refinement,
    "TeacherLogits": teacher_logits,
    "Synthesis": synthesis,
}


SEED = int(os.environ.get("LITKD_FAULT_SEED", time.time_ns() % 1_000_000))


def draw(name: str, first: int, last: int) -> int:
    """A moment of those; printed, which pytest shows of a test that fails."""
    moment = random.Random(f"{SEED} {name}").randint(first, last)
    print(f"{name} at moment {moment} of {last}: LITKD_FAULT_SEED={SEED} does it again")
    return moment


class Moments(Callback):
    """Counts the moments of a run, and sends the process a signal at one of them, by default SIGKILL.

    Attributes:
        count: so far.
        first_save: how many there were when the first checkpoint was about to be written.
        last_step: and when the last step was.
    """

    def __init__(self, kill: int | None = None, number: int = int(signal.SIGKILL)) -> None:
        self.kill, self.number, self.count, self.first_save, self.last_step = kill, number, 0, 0, 0

    def _moment(self, *args: Any) -> None:
        self.count += 1
        if self.count == self.kill:
            os.kill(os.getpid(), self.number)

    on_train_batch_start = on_before_backward = on_train_batch_end = _moment
    on_validation_batch_end = on_train_epoch_end = on_predict_batch_start = on_predict_batch_end = _moment

    def on_before_optimizer_step(self, *args: Any) -> None:
        self._moment()
        self.last_step = self.count

    def on_save_checkpoint(self, *args: Any) -> None:
        self._moment()
        self.first_save = self.first_save or self.count

    @contextmanager
    def files(self) -> Iterator[None]:
        """Within it, a moment is also just before a file is made safe on the disk, and before it is renamed."""
        with patch("os.fsync", self._before(os.fsync)), patch("os.replace", self._before(os.replace)):
            yield

    def _before(self, work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (self._moment(), work(*arguments))[1]


class Poison(Callback):
    """A NaN in a batch of the first epoch: in a pixel, or in what the student's embedding gives.

    Attributes:
        index: of the batch's samples.
        weights: before the batch, of what is trained.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx != self.batch:
            return
        self.module, self.index = module, batch["index"].tolist()
        self.weights = self.weights_now()
        if "image" in batch:
            batch["image"][0, 0, 0, 0] = torch.nan
        else:
            embedding = next(part for part in module.network.modules() if isinstance(part, nn.Embedding))  # type: ignore
            embedding.register_forward_hook(lambda part, inputs, output: output * torch.nan)

    def weights_now(self) -> dict[str, torch.Tensor]:
        """The same at present."""
        return {name: p.detach().clone() for name, p in self.module.named_parameters() if p.requires_grad}


def write_inputs(inputs: Path) -> None:
    """What trainings and stages read."""
    saved(inputs / "base", causal(max_position_embeddings=600))
    sums = [{"question": f"{i} + {i}", "answer": str(2 * i)} for i in range(10)]
    own_task(inputs)
    write_rows(inputs / "sums" / "train.jsonl", sums)
    words = [{"system": "s", "user": f"{i}?", "assistant": "ab" * (1 + 7 * i % 11)} for i in range(18)]
    chats = [{"messages": [{"role": role, "content": text} for role, text in one.items()]} for one in words]
    write_rows(inputs / "chats.jsonl", chats)
    write("Rollouts", inputs, inputs / "rollouts")
    as_if_answered(inputs / "rollouts")
    write("Refinement", inputs, inputs / "refined")
    as_if_accepted(inputs / "refined")


def write(name: str, inputs: Path, folder: Path, moments: Moments | None = None) -> None:
    """Run a stage."""
    torch.set_num_threads(1)
    module, data = STAGES[name](inputs, folder)
    with moments.files() if moments else nullcontext():
        quiet_trainer(callbacks=[moments] if moments else []).predict(module, data)


def train(
    name: str,
    inputs: Path,
    folder: Path,
    *callbacks: Callback,
    seed: int = 1,
    ckpt_path: Any = None,
    num_workers: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """Train for two epochs, with a checkpoint at each step, validation and end of an epoch; how it ended."""
    torch.set_num_threads(1)
    module, data = TRAININGS[name](inputs, seed)
    if num_workers:
        data.num_workers = num_workers  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    every: Callable[..., ModelCheckpoint] = partial(ModelCheckpoint, folder, save_top_k=-1)
    keep = [
        every(filename="{step}", every_n_train_steps=1),
        every(filename="validated-{step}", save_on_train_epoch_end=False),
        every(filename="epoch-{step}", save_on_train_epoch_end=True, mode="max"),  # else Lightning calls them the same
    ]
    probe = [OnlineLinearProbe("network")] if name == "Classifier" else []
    settings = {"max_epochs": 2, "num_sanity_val_steps": 1, "enable_checkpointing": True, **settings}
    trainer = quiet_trainer(callbacks=[*probe, *callbacks, *keep], **settings)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    more: dict[str, Any] = {}
    module.on_save_checkpoint(more)
    return {
        "weights": {key: value.clone() for key, value in module.state_dict().items()},
        "optimizer": trainer.optimizers[0].state_dict(),
        "rate": trainer.lr_scheduler_configs[0].scheduler.get_last_lr(),
        "step": trainer.global_step,
        "random": torch.get_rng_state(),
        "probe": probe[0].state_dict() if probe else {},
        "more": more,
    }


def newest(folder: Path) -> Path | None:
    """The checkpoint written last."""
    return max(folder.glob("[!.]*.ckpt"), key=lambda file: file.stat().st_mtime_ns, default=None)


def apart(work: Callable[..., Any], *arguments: Any, log: Path | None = None, **environment: str) -> Any:
    """``work(*arguments)`` in a process that is forked from one which has imported all this and done nothing else.

    What it writes to stderr goes to ``log``.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    process = context.Process(target=_work, args=(log, environment, work, *arguments))
    process.start()
    return process


def _work(log: Path | None, environment: dict[str, str], work: Callable[..., Any], *arguments: Any) -> None:
    os.environ.update(environment)
    if log is not None:
        with log.open("w") as file:
            os.dup2(file.fileno(), 2)
    work(*arguments)


def end(process: Any) -> int:
    """Wait; the exit code, negative after a signal."""
    process.join(60)
    if process.is_alive():
        process.kill()
        raise AssertionError("the process hangs")
    return int(process.exitcode)

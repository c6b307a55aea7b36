"""Every method with compiled networks: the same numbers, really compiled, and one form of checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import obow_toy
import pytest
import torch
import torch.nn.functional as F
from chat_toy import chat_tokenizer
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from mgsr_toy import Dialogues, network
from minilm_toy import RandomTexts, encoder
from text_toy import TinyGLUE, TinySQuAD, classifier, constant, reader
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from toy import ToyImages, quiet_trainer, toy_network

from lit_kd.callbacks import ChannelsLast, CompileNetworks, ExportStudent
from lit_kd.datamodules import DigitsDataModule
from lit_kd.language.engines import Sampling
from lit_kd.losses import ForwardKL
from lit_kd.methods import (
    Classifier,
    DefensiveDistill,
    FineTune,
    LanguageModel,
    LinearEvaluation,
    MCMIDistill,
    MCMITeacher,
    MGSRDistill,
    MiniLMDistill,
    OnPolicy,
    QuestionAnswering,
    SequenceClassifier,
    SSBDistill,
    SyntheticDistill,
)
from lit_kd.models import FrozenTeacher, causal_lm, load_checkpoint, load_exported, vision_model
from lit_kd.objectives import CRD, KD, VID, Objective

pytestmark = pytest.mark.slow
LENGTH = 12  # the longest of the dialogues


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class Padded(Dialogues):
    """Texts of one length, so that there is one graph; the teacher can read them behind another name, too."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        names = ("input_ids", "attention_mask", "completion_mask")
        padded = {name: F.pad(batch[name], (0, LENGTH - batch[name].shape[1])) for name in names}
        return {**padded, **{f"teacher_{name}": value for name, value in padded.items()}, "index": batch["index"]}


def distill(objective: Objective) -> Classifier:
    return MCMIDistill(toy_network(), toy_network(6), 3, objective, (3, 8, 8), optimizer=sgd)


def layers(path: str) -> dict[str, list[str]]:
    return {"student_layers": [path], "teacher_layers": [path]}


PLAIN: dict[str, Any] = {"optimizer": sgd, "lr_scheduler": constant}
ON_8X8: dict[str, Any] = {"layer": "1", "image_shape": (3, 8, 8), "optimizer": sgd}
WRITING = OnPolicy(1.0, Sampling(max_new_tokens=4), LENGTH)
LORA = {"r": 4, "target_modules": "all-linear"}
CASES: dict[str, Callable[[str], LightningModule]] = {
    "classifier": lambda path: Classifier(toy_network(), 3, optimizer=sgd),
    "mcmi_teacher": lambda path: MCMITeacher(toy_network(), 3, optimizer=sgd),
    "kd": lambda path: distill(KD()),
    "vid": lambda path: distill(VID(**layers("0"))),
    "crd": lambda path: distill(CRD(feature_dim=4, num_negatives=8, **layers("5:input"))),
    "defensive": lambda path: DefensiveDistill(toy_network(), toy_network(6), 3, 2.0, 0.5, optimizer=sgd),
    "linear": lambda path: LinearEvaluation(toy_network(), 3, **ON_8X8),
    "fine_tune": lambda path: FineTune(toy_network(), 3, **ON_8X8),
    "obow": lambda path: obow_toy.module(),
    "minilm": lambda path: MiniLMDistill(encoder(seed=1, hidden_size=12), encoder(), heads=4, **PLAIN),
    "sequence": lambda path: SequenceClassifier(classifier(), 2, teacher=classifier(seed=1), **PLAIN),
    "squad": lambda path: QuestionAnswering(reader(), reader(1), **PLAIN),
    "language": lambda path: LanguageModel(network(path), **PLAIN),
    "ssb": lambda path: SSBDistill(network(path), network(path, 1), **PLAIN),
    "ssb_adapter": lambda path: SSBDistill(causal_lm(path, lora=LORA), **PLAIN),
    "synthetic": lambda path: SyntheticDistill(network(path), network(path, 1), kd_weight=1.0, **PLAIN),
    "mgsr": lambda path: MGSRDistill(network(path), network(path, 1), **PLAIN),
    "mgsr_writing": lambda path: MGSRDistill(network(path), network(path, 1), WRITING, ForwardKL(), **PLAIN),
}


def data_of(case: str) -> LightningDataModule:
    own: dict[str, LightningDataModule] = {
        "obow": obow_toy.CropImages(batch_size=8),
        "minilm": RandomTexts(),
        "sequence": TinyGLUE(),
        "squad": TinySQuAD(),
        "mgsr_writing": Dialogues(),
    }
    return own.get(case) or (
        Padded() if case in list(CASES)[list(CASES).index("language") :] else ToyImages(batch_size=10)
    )


class Counting:
    """A backend that counts the graphs that it makes and runs; ``aot_eager``, or ``eager`` for lengths that change."""

    def __init__(self, backend: Callable[..., Any] = aot_eager) -> None:
        self.backend, self.made, self.runs = backend, 0, 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.made += 1
        compiled = self.backend(graph, inputs)

        def run(*arguments: Any) -> Any:
            self.runs += 1
            return compiled(*arguments)

        return run


class Watch(Callback):
    """Of each step the loss, and how often the graphs have been run since the first."""

    def __init__(self, *counts: Counting) -> None:
        self.counts = counts
        self.losses: list[Tensor] = []
        self.runs: list[list[int]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(outputs["loss"])
        self.runs.append([count.runs for count in self.counts])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("network")
    path = chat_tokenizer(folder)
    network(path).save_pretrained(folder)
    return path


def fit(case: str, path: str, *callbacks: Callback, steps: int = 3, resume: Path | None = None) -> LightningModule:
    """Train with the same start for all."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = CASES[case](path)
    keeps = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    trainer = quiet_trainer(
        max_steps=steps,
        max_epochs=2,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=list(callbacks),
        enable_checkpointing=keeps,
    )
    trainer.fit(module, data_of(case), ckpt_path=resume)
    return module


def assert_same_weights(found: LightningModule, expected: LightningModule) -> None:
    """Up to the rounding of kernels that are put together in another way."""
    assert list(found.state_dict()) == list(expected.state_dict())
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_every_method_learns_the_same_by_compiled_networks(case: str, path: str) -> None:
    straight = Watch()
    plain = fit(case, path, straight)
    names = [name for name, _ in plain.named_children() if name in ("student", "network", "teacher")]
    counts = [Counting((lambda graph, inputs: graph) if case == "mgsr_writing" else aot_eager) for _ in names]
    watch = Watch(*counts)
    compiled = fit(
        case, path, *[CompileNetworks([name], backend=count) for name, count in zip(names, counts, strict=True)], watch
    )
    torch.testing.assert_close(watch.losses, straight.losses, rtol=1e-4, atol=1e-5)
    assert_same_weights(compiled, plain)
    # In every step each network runs its graphs, of which there are few: no step falls back or compiles anew.
    runs = torch.tensor([[0] * len(counts), *watch.runs])
    assert (runs.diff(dim=0) > 0).all() and max(count.made for count in counts) <= 4
    CASES[case](path).load_state_dict(compiled.state_dict())
    compiled.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("case", ["vid", "sequence"])
def test_checkpoints_load_into_each_other(case: str, path: str, tmp_path: Path) -> None:
    """By the backend of users; the first half of a run is compiled, or the resumed one."""
    compiler = CompileNetworks(["network"])
    straight = fit(case, path, steps=4)
    for first, second in (([compiler], []), ([], [compiler])):
        folder = tmp_path / f"compiled{len(first)}"
        fit(case, path, ModelCheckpoint(folder, "half"), *first, steps=2)
        resumed = fit(case, path, *second, steps=4, resume=folder / "half.ckpt")
        assert_same_weights(resumed, straight)


def test_a_network_that_is_compiled_already_keeps_its_names(tmp_path: Path) -> None:
    counts = [Counting(), Counting()]
    networks = [vision_model("resnet8", 10) for _ in range(3)]
    student, teacher = (torch.compile(one, backend=count) for one, count in zip(networks, counts, strict=False))
    objective = VID(student_layers=["backbone.layer1"], teacher_layers=["backbone.layer1"])
    module = MCMIDistill(student, teacher, 10, objective, optimizer=sgd)
    before = [count.runs for count in counts]
    trainer = quiet_trainer(max_steps=1, max_epochs=1, callbacks=[ExportStudent(str(tmp_path))])
    trainer.fit(module, DigitsDataModule(batch_size=8))
    assert all(count.runs > old for count, old in zip(counts, before, strict=True))
    assert not [key for key in module.state_dict() if "_orig_mod" in key]
    exported = load_exported(tmp_path).state_dict()
    torch.testing.assert_close(exported, networks[0].state_dict(), rtol=0, atol=0)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    load_checkpoint(networks[2], tmp_path / "last.ckpt")
    torch.testing.assert_close(networks[2].state_dict(), exported, rtol=0, atol=0)
    assert isinstance(FrozenTeacher(teacher).module, type(networks[1]))


def test_networks_that_are_read_inside_are_compiled_by_the_callback_alone(path: str) -> None:
    for build in (
        lambda: LanguageModel(torch.compile(network(path))),
        lambda: MiniLMDistill(torch.compile(encoder(seed=1)), encoder(), heads=4),
    ):
        with pytest.raises(ValueError, match="compile it by the callback CompileNetworks"):
            build()


def test_parts_that_are_not_there(path: str) -> None:
    with pytest.raises(ValueError, match=r"parts=\['student'\] names 'student', and Classifier has network, "):
        fit("classifier", path, CompileNetworks(["student"]))
    with pytest.raises(ValueError, match="'network', and LanguageModel has student"):  # what is inside is not called
        fit("language", path, CompileNetworks(["network"]))
    with pytest.raises(ValueError, match="has one layer for all"):
        MiniLMDistill(encoder("albert"), encoder("albert", 1), heads=4).student.compile()


def test_channels_last_gives_the_same(path: str) -> None:
    plain, found = fit("kd", path), fit("kd", path, ChannelsLast())
    assert_same_weights(found, plain)
    for part in (found.network, found.teacher.module):
        assert part[0].weight.is_contiguous(memory_format=torch.channels_last)

# ruff: noqa: E501  each sentence stands on one line, as users see it
"""Faults that show only with the data, the trainer or the machine: each ends before the first step, in one sentence."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datamodules.text_files import squad
from good_input import GOOD, write_files
from lightning.pytorch import Callback
from mgsr_toy import Dialogues
from obow_toy import CropImages
from obow_toy import module as obow
from text_toy import TinyGLUE, classifier, constant
from torch.utils.data import DataLoader
from toy import ToyImages, quiet_trainer, toy_network, weights

from lit_kd.attacks import autoattack
from lit_kd.callbacks import (
    CollapseMonitor,
    EigenCAMPanel,
    EMATeacherCallback,
    ExportStudent,
    FewShotEpisodes,
    KNNProbe,
    OnlineLinearProbe,
    OnlineVocabularyCallback,
    VocabularyPanel,
)
from lit_kd.cli import main
from lit_kd.datamodules import (
    AIME24DataModule,
    ArithmeticDataModule,
    ChatDataModule,
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    GLUEDataModule,
    GSM8KDataModule,
    HintsDataModule,
    ImageFolderDataModule,
    InstructionDataModule,
    RightAnswersDataModule,
    SQuADDataModule,
    SSBDataModule,
    TaskDataModule,
    TextCorpusDataModule,
    TinyImageNetDataModule,
)
from lit_kd.language.chunkers import NltkChunker, SpacyChunker
from lit_kd.language.engines import ServerEngine, VLLMEngine
from lit_kd.language.equivalence import require_math_verify
from lit_kd.language.overlap import rouge_l
from lit_kd.methods import (
    Classifier,
    LanguageModel,
    LinearEvaluation,
    MCMIDistill,
    MCMITeacher,
    MGSRDistill,
    MiniLMDistill,
    QuestionAnswering,
    Replay,
    SequenceClassifier,
    SSBDistill,
)
from lit_kd.models import causal_lm, vision_model
from lit_kd.objectives import CRD

Build = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_files(tmp_path_factory.mktemp("good"))
    squad(folder / "squad.json")
    (folder / "texts.txt").write_text("One text.\n\nAnother text.\n")
    (folder / "empty.txt").write_text("")
    (folder / "rows.jsonl").write_text('{"text": "A row."}\n')
    for part in ("train", "test"):
        (folder / f"{part}.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    return folder


def place(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [place(one, folder) for one in value]
    return value.replace("{folder}", str(folder)) if isinstance(value, str) else value


# Files: data modules, arguments, sentence of `setup`

SQUAD = {"train_file": "{folder}/squad.json", "eval_file": "{folder}/squad.json"}
FILES: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (
        CIFAR10DataModule,
        {"root": "{folder}/none"},
        "root={folder}/none holds neither train/, train.zip nor cifar-10-batches-py/: correct root or set download=True.",
    ),
    (
        CIFAR100DataModule,
        {"root": "{folder}/none"},
        "root={folder}/none holds neither train/, train.zip nor cifar-100-python/: correct root or set download=True.",
    ),
    (
        TinyImageNetDataModule,
        {"root": "{folder}/none"},
        "root={folder}/none does not exist: give the folder or zip of Tiny ImageNet.",
    ),
    (
        TinyImageNetDataModule,
        {"root": "{folder}/encoder"},
        "root={folder}/encoder has no wnids.txt: give the official folder or zip of Tiny ImageNet.",
    ),
    (
        TinyImageNetDataModule,
        {"checksum": "0" * 32},
        "checksum is that of a zip archive, and root={folder} is none: leave it out.",
    ),
    (
        ImageFolderDataModule,
        {"root": "{folder}/none"},
        "root={folder}/none has no folder train/: it needs train/ and test/ or val/.",
    ),
    (
        DigitsDataModule,
        {"omit_classes": ["ten"]},
        "omit_classes names 'ten', which is no class: give an index below 10 or a name such as 0, 1, 2, 3, 4.",
    ),
    (
        DigitsDataModule,
        {"omit_classes": list(range(10))},
        "omit_classes=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9] leaves no class: keep at least one.",
    ),
    (
        DigitsDataModule,
        {"val_fraction": 1e-6},
        "val_fraction=1e-06 holds out no sample of any class: raise it, or set 0.",
    ),
    (
        DigitsDataModule,
        {"val_fraction": 0.9999},
        "Classes without a training sample at val_fraction=0.9999: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; add images, lower val_fraction, or name them in omit_classes.",
    ),
    (
        GLUEDataModule,
        {"root": "{folder}/none"},
        "{folder}/none/SST-2/train.tsv does not exist: root must be the folder of GLUE's folders.",
    ),
    (
        SQuADDataModule,
        {"train_file": "{folder}/none.json"},
        "{folder}/none.json does not exist: give an official JSON file of SQuAD.",
    ),
    (
        SQuADDataModule,
        {"train_file": "{folder}/rows.jsonl"},
        "{folder}/rows.jsonl is no JSON file of SQuAD (KeyError: 'data').",
    ),
    (
        SQuADDataModule,
        {**SQUAD, "version": "1.1"},
        "{folder}/squad.json is a file of SQuAD 2.0 but version='1.1': give the file of that version, or change version.",
    ),
    (SQuADDataModule, {**SQUAD, "stride": -1}, "stride=-1 must be a whole number, at least 0."),
    (
        SQuADDataModule,
        {**SQUAD, "stride": 500},
        "stride=500 is too large for the 63 tokens of context that max_length=128 leaves beside max_question_length=64 and 1 special tokens: lower stride or max_question_length, or raise max_length.",
    ),
    (SQuADDataModule, {**SQUAD, "stride_mode": "jump"}, "stride_mode='jump' must be 'overlap' or 'step'."),
    (SQuADDataModule, {**SQUAD, "max_question_length": 0}, "max_question_length=0 must be a whole number, at least 1."),
    (
        TextCorpusDataModule,
        {"files": ["{folder}/none.txt"]},
        "{folder}/none.txt does not exist: files must name text or .jsonl files.",
    ),
    (
        TextCorpusDataModule,
        {"files": ["{folder}/empty.txt"]},
        "There is no text in {folder}/empty.txt: give files with a document a line, or another dataset.",
    ),
    (
        TextCorpusDataModule,
        {"files": ["{folder}/rows.jsonl"], "text_column": "body"},
        "{folder}/rows.jsonl has no text in column 'body', only text: give text_column.",
    ),
    (
        TextCorpusDataModule,
        {"files": ["{folder}/texts.txt"], "max_length": 1},
        "max_length=1 leaves no token beside 1 special ones: raise it.",
    ),
    (
        TextCorpusDataModule,
        {"files": ["{folder}/texts.txt"], "val_fraction": 0.01},
        "val_fraction=0.01 of 1 texts holds out none: raise it, or set 0.",
    ),
    (
        TextCorpusDataModule,
        {"files": ["{folder}/texts.txt"], "train_samples": 99},
        "train_samples=99 is more than the 1 texts that there are at val_fraction=0.0: lower one of them.",
    ),
    (
        GSM8KDataModule,
        {"root": "{folder}/none"},
        "{folder}/none/train.jsonl does not exist: give a file with one problem in JSON on each line.",
    ),
    (
        GSM8KDataModule,
        {"root": "{folder}"},
        "{folder}/train.jsonl, line 1, is no problem: No '####' before a gold answer in '2': a solution of GSM8K has it.",
    ),
    (
        AIME24DataModule,
        {"root": "{folder}"},
        "AIME24DataModule has no training set: fit to another one, such as GSM8KDataModule, and test on this one.",
    ),
    (
        ArithmeticDataModule,
        {"samples": 4, "test_samples": 4, "max_length": 3},
        "None of the training rows has a solution and at most max_length=3 tokens: raise it, or give problems with solutions.",
    ),
    (
        ChatDataModule,
        {"chats": "{folder}/none.jsonl"},
        "There is no file or folder {folder}/none.jsonl: give chats as a JSONL file or a folder.",
    ),
    (
        ChatDataModule,
        {"chats": "{folder}/rows.jsonl"},
        'Row 1 of {folder}/rows.jsonl has no list "messages" of role and content.',
    ),
    (
        InstructionDataModule,
        {"train": "{folder}/none.jsonl"},
        "{folder}/none.jsonl does not exist: give a file with one instruction in JSON on each line.",
    ),
    (
        InstructionDataModule,
        {"train": "{folder}/rows.jsonl"},
        "{folder}/rows.jsonl, line 1, is no instruction: 'instruction' must be a text, got None; the columns are text.",
    ),
    (
        SSBDataModule,
        {"refined": "{folder}/none"},
        "{folder}/none holds no manifest.json: give the folder that the stage before has written.",
    ),
    (
        HintsDataModule,
        {"rollouts": "{folder}/none"},
        "{folder}/none holds no manifest.json: give the folder that the stage before has written.",
    ),
    (
        RightAnswersDataModule,
        {"rollouts": "{folder}/none"},
        "{folder}/none holds no manifest.json: give the folder that the stage before has written.",
    ),
    (
        TaskDataModule,
        {"root": "{folder}/none"},
        "{folder}/none/train.jsonl does not exist: give JSON lines, one row each.",
    ),
    (
        TaskDataModule,
        {"root": "{folder}"},
        "Row 0 of {folder} (train): it has no column 'premise' but question, answer: say by columns where the task 'nli' finds premise, hypothesis.",
    ),
]


@pytest.mark.parametrize("row", FILES, ids=lambda row: f"{row[0].__name__}-{'-'.join(row[1])}")
def test_bad_files_are_found_in_setup(row: Any, folder: Path) -> None:
    call, bad, sentence = row
    data = call(**{**GOOD[call](folder), **{name: place(value, folder) for name, value in bad.items()}})
    with pytest.raises((ValueError, FileNotFoundError)) as caught:  # noqa: PT012  either may find it
        data.prepare_data()
        data.setup("predict" if call in (HintsDataModule, TaskDataModule) else "fit")
    assert str(caught.value) == place(sentence, folder)


# Fits: module, data, settings of the trainer, sentence; `good` builds with otherwise good arguments


def pairs(first: int = 0, last: int = 2, image: Any = None) -> DataLoader:
    labels = torch.arange(first, last + 1).repeat(3)
    return DataLoader([(torch.rand(3, 8, 8) if image is None else image, label) for label in labels], batch_size=9)


def dicts(**columns: Any) -> DataLoader:
    return DataLoader([columns] * 8, batch_size=4)


class Tuples(ToyImages):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return batch["image"], batch["label"]


def with_callback(callback: Callback) -> Build:
    return lambda good: (good(Classifier), ToyImages(batch_size=8), {"callbacks": [callback]})


def remembering() -> CRD:
    return CRD(num_negatives=4, student_layers=["3"], teacher_layers=["3"])


FITS: dict[str, tuple[Build, str]] = {
    "label too large": (
        lambda good: (good(Classifier), pairs(0, 3), {}),
        "Labels span [0, 3] but num_classes=3: they must be from 0 to 2.",
    ),
    "label below 0": (
        lambda good: (good(Classifier), pairs(-1, 2), {}),
        "Labels span [-1, 2] but num_classes=3: they must be from 0 to 2.",
    ),
    "other number of classes": (
        lambda good: (good(Classifier, num_classes=5), ToyImages(batch_size=8), {}),
        "The network gives logits of shape (8, 3) for num_classes=5.",
    ),
    "normalised pixels": (
        lambda good: (Classifier(vision_model("resnet8", 3), 3), pairs(image=torch.full((3, 16, 16), -2.0)), {}),
        "Images span [-2, -2] but the network normalises pixels in [0, 1] itself: leave the normalisation out of the data, or build the network with normalize=False.",
    ),
    "other keys": (
        lambda good: (good(Classifier), dicts(pixels=torch.rand(3, 8, 8), label=1), {}),
        "The batch is 'pixels', 'label': it must be a dict with 'image', 'label' and, where asked for, 'index', or a pair (image, label).",
    ),
    "no labels": (
        lambda good: (good(Classifier), DataLoader(torch.rand(8, 3, 8, 8)), {}),
        "The batch is Tensor: it must be a dict with 'image', 'label' and, where asked for, 'index', or a pair (image, label).",
    ),
    "no max_epochs": (
        lambda good: (good(Classifier), ToyImages(), {"max_epochs": None, "max_steps": 3}),
        "max_epochs=-1 of the Trainer gives the published schedule no length: set max_epochs, or give an lr_scheduler of your own.",
    ),
    "overfit_batches": (
        lambda good: (good(Classifier), ToyImages(), {"overfit_batches": 1}),
        "Trainer(overfit_batches=...) would replace the sampler: use train_fraction instead.",
    ),
    "all frozen": (
        lambda good: (good(Classifier, network=toy_network().requires_grad_(False)), ToyImages(), {}),
        "Classifier has no parameter that requires a gradient: nothing would learn.",
    ),
    "no data module to remember": (
        lambda good: (good(MCMIDistill, objective=remembering()), pairs(), {}),
        "CRD remembers every training sample: it needs a data module with train_samples() -> (index, label), and batches that are dicts with an 'index'.",
    ),
    "pairs without index": (
        lambda good: (good(MCMIDistill, objective=remembering()), Tuples(batch_size=8), {}),
        "CRD remembers every training sample, but the batch has no 'index': give a dict with 'image', 'label' and 'index'.",
    ),
    "class without sample": (
        lambda good: (good(MCMITeacher), ToyImages(omit_classes=[1]), {}),
        "Classes [1] have no training sample, so they have no centroid: leave no class out.",
    ),
    "label too large for probe": (
        lambda good: (good(LinearEvaluation), pairs(0, 3), {}),
        "Labels span [0, 3] but num_classes=3: they must be from 0 to 2.",
    ),
    "no views": (
        lambda good: (obow(), ToyImages(batch_size=8), {}),
        "OBoW needs batches that are dicts with 'image', the teacher's view, and 'crops', a list of tensors: give the data module its argument views.",
    ),
    "fewer words than images": (
        lambda good: (obow(num_words=4), CropImages(batch_size=8), {}),
        "num_words=4 is smaller than the 8 images of a step (batch size x devices x accumulated batches), each of which brings a word: take more words or smaller batches.",
    ),
    "other image_shape": (
        lambda good: (obow(image_shape=(3, 20, 20)), CropImages(batch_size=8), {}),
        "The teacher's view is (3, 16, 16) but image_shape=(3, 20, 20): make them equal.",
    ),
    "endless momentum": (
        lambda good: (obow(lr_scheduler=constant), CropImages(batch_size=8), {"max_epochs": -1}),
        "total_steps=None gives the cosine of the teacher's momentum no length: set max_epochs or max_steps of the Trainer, or take a constant momentum.",
    ),
    "warm-up without end": (
        lambda good: (good(MiniLMDistill), TinyGLUE(), {}),
        "warmup_steps=4000 does not end in a training of 8 steps: lower it (4,000 of 400,000 is published).",
    ),
    "ids beyond the embeddings": (
        lambda good: (
            good(
                MiniLMDistill,
                student=classifier(vocab_size=20),
                teacher=classifier(vocab_size=20),
                lr_scheduler=constant,
            ),
            TinyGLUE(),
            {},
        ),
        "input_ids reach 39, but a network has embeddings for 20 tokens: give the data the teacher's tokenizer.",
    ),
    "other labels": (
        lambda good: (good(SequenceClassifier), TinyGLUE(task="mnli"), {}),
        "Labels [0, 1, 2] lie outside of 0..1: samples without a label, such as GLUE's test sets have, can only be predicted.",
    ),
    "no questions": (
        lambda good: (good(QuestionAnswering), TinyGLUE(), {}),
        'QuestionAnswering reads texts and windows of its data module: it needs attributes examples and features, dicts of lists with the keys "train", "val" and "test".',
    ),
    "no completions": (
        lambda good: (good(LanguageModel), TinyGLUE(), {}),
        "The batch has no 'completion_mask' (it has ['attention_mask', 'index', 'input_ids', 'labels', 'token_type_ids']): it must be a dict of the tokenizer's tensors, targets and 'index'; without targets there is only predict.",
    ),
    "nothing held out": (
        lambda good: (good(MGSRDistill, source=Replay()), Dialogues(held_out=0), {}),
        "source=Replay is driven by val/loss, and nothing is held out: give the data validation texts (val_fraction), or a phi to start with.",
    ),
    "small buffer": (
        lambda good: (good(MGSRDistill, source=Replay(initial_phi=0.5, capacity=2)), Dialogues(), {}),
        "capacity=2 is less than the batch of 4 sequences: raise it.",
    ),
    "no teacher logits": (
        lambda good: (good(SSBDistill, teacher="offline"), Dialogues(), {}),
        "The data have teacher logits at temperature None, not at temperature=2.0: give teacher_logits, written at the temperature of the training.",
    ),
    "EMATeacherCallback": (with_callback(EMATeacherCallback()), "Classifier has no EMATeacher at teacher='teacher'."),
    "OnlineVocabularyCallback": (
        with_callback(OnlineVocabularyCallback()),
        "Classifier has no Vocabulary among its sub-modules.",
    ),
    "KNNProbe": (
        with_callback(KNNProbe()),
        "Classifier has no Module at 'student'; its children are network, val_metrics, test_metrics, test_confusion.",
    ),
    "KNNProbe layer": (
        with_callback(KNNProbe("network", layer="fc")),
        "Sequential has no sub-module 'fc'; nearest: 0, 1, 2.",
    ),
    "OnlineLinearProbe": (
        with_callback(OnlineLinearProbe("network", num_classes=2)),
        "num_classes=2 of the probe is too small for label 2.",
    ),
    "CollapseMonitor": (
        with_callback(CollapseMonitor()),
        "Classifier has no Module at 'student'; its children are network, val_metrics, test_metrics, test_confusion.",
    ),
    "FewShotEpisodes": (
        with_callback(FewShotEpisodes()),
        "Classifier has no Module at 'student'; its children are network, val_metrics, test_metrics, test_confusion.",
    ),
    "VocabularyPanel": (
        with_callback(VocabularyPanel()),
        "Classifier has no vocabularies of its own: name the maps and words in levels.",
    ),
    "ExportStudent": (
        with_callback(ExportStudent(network="student")),
        "Classifier has no Module at 'student'; its children are network, val_metrics, test_metrics, test_confusion.",
    ),
    "ExportStudent best": (
        with_callback(ExportStudent(weights="best")),
        'weights="best" needs a ModelCheckpoint with monitor among the callbacks: add one.',
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_with_bad_data_ends_before_its_first_step(name: str, folder: Path) -> None:
    build, sentence = FITS[name]
    module, data, settings = build(lambda call, **changes: call(**{**GOOD[call](folder), **changes}))
    before = weights(module)
    trainer = quiet_trainer(**{"max_epochs": 1, **settings})
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the sentence is compared below
        trainer.fit(module, data)
    assert str(caught.value) == sentence
    assert trainer.global_step == 0
    assert torch.equal(weights(module), before)


# Packages that are extras: what is missing, who asks for it, the sentence

PACKAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    (
        "sklearn.datasets",
        lambda folder: DigitsDataModule().setup("fit"),
        "DigitsDataModule needs scikit-learn: pip install 'lit-kd[digits]'.",
    ),
    (
        "peft",
        lambda folder: causal_lm(str(folder / "causal"), lora={"r": 2}),
        "lora needs peft: pip install 'lit-kd[llm]'.",
    ),
    (
        "openai",
        lambda folder: ServerEngine("m", "http://localhost:1/v1"),
        "ServerEngine needs openai: pip install 'lit-kd[llm]'.",
    ),
    ("math_verify", lambda folder: require_math_verify(), "kind='math' needs math-verify: pip install 'lit-kd[llm]'."),
    ("nltk", lambda folder: rouge_l("a", ["b"]), "Rouge-L needs nltk: pip install 'lit-kd[llm]'."),
    ("nltk", lambda folder: NltkChunker(), "NltkChunker needs nltk: pip install 'lit-kd[llm]'."),
    ("spacy", lambda folder: SpacyChunker(), "SpacyChunker needs spaCy: pip install 'lit-kd[spacy]'."),
    ("vllm", lambda folder: VLLMEngine("gpt2"), "VLLMEngine needs vllm: pip install vllm, on a machine with a GPU."),
    ("matplotlib", lambda folder: VocabularyPanel(), "VocabularyPanel needs matplotlib: pip install 'lit-kd[plots]'."),
    (
        "pytorch_grad_cam",
        lambda folder: EigenCAMPanel(toy_network()),
        "EigenCAMPanel needs pytorch_grad_cam: pip install 'lit-kd[plots]'.",
    ),
    (
        "pyautoattack",
        lambda folder: autoattack(**GOOD[autoattack](folder)),
        "AutoAttack needs pyautoattack: pip install 'lit-kd[attacks]'.",
    ),
]


@pytest.mark.parametrize(("package", "call", "sentence"), PACKAGES, ids=[row[0] for row in PACKAGES])
def test_a_missing_package_is_named_with_its_extra(
    package: str, call: Any, sentence: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as caught:
        call(folder)
    assert str(caught.value) == sentence


# The command line

FIT = ["fit", "--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
NETWORK = [
    "--model.network=lit_kd.models.vision_model",
    "--model.network.name=resnet8",
    "--model.network.num_classes=10",
]
CLASSIFIER, DIGITS = ["--model=Classifier", *NETWORK], ["--data=DigitsDataModule"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([*CLASSIFIER, *DIGITS, "--data.batch_size=0"], "batch_size=0 must be a whole number, at least 1."),
        ([*CLASSIFIER, "--model.temperature=-1", *DIGITS], "temperature=-1.0 must be a positive number."),
        (
            [*CLASSIFIER, "--model.network.num_classes=9", *DIGITS],
            "The network has 9 classes but num_classes=10: give both the data's number of classes.",
        ),
        (
            [*CLASSIFIER, *DIGITS, "--trainer.max_steps=3"],
            "max_epochs=-1 of the Trainer gives the published schedule no length: set max_epochs, or give an lr_scheduler of your own.",
        ),
    ],
)
def test_the_command_line_says_what_the_class_says(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the fit saves its configuration there
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the sentence is looked for below
        main([*FIT, *words])
    assert sentence in str(caught.value)  # among the lines by which the parser says where it was


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model=Classifer", *DIGITS], "Expected a dot import path string: Classifer"),
        ([*CLASSIFIER, *DIGITS, "--data.batchsize=3"], "Option 'batchsize' is not accepted"),
        ([*CLASSIFIER, *DIGITS, "--data.batch_size=many"], "Expected a <class 'int'>. Got value: many"),
        (
            ["--model=MCMITeacher", *NETWORK, "--model.centroids=batch", *DIGITS],
            "Expected a typing.Literal['frozen', 'epoch']. Got value: batch",
        ),
        (["-c", "none.yaml"], "none.yaml'"),
    ],
)
def test_the_parser_names_what_it_cannot_read(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*FIT, *words])
    assert sentence in capsys.readouterr().err

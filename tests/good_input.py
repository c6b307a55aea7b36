"""For every public class and function with arguments that can be wrong: arguments that are right.

They are functions of a folder that :func:`write_files` has filled, so that every call gets objects of its own.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from chat_toy import VOCABULARY, causal, chat_tokenizer
from text_toy import classifier, reader
from torch import nn
from toy import toy_network
from transformers import AutoTokenizer

from lit_kd import attacks, callbacks, datamodules, losses, methods, models, objectives
from lit_kd.attacks import Protocol
from lit_kd.language import chunkers, engines
from lit_kd.language.accuracy import metric_of
from lit_kd.models.cifar.resnet import CIFARResNet
from lit_kd.models.cifar.wide_resnet import CIFARWideResNet

Arguments = dict[str, Any]


def write_files(folder: Path) -> Path:
    """A tokenizer with a chat template, an encoder and a causal network."""
    for name in ("tokenizer", "encoder", "causal"):
        chat_tokenizer(folder / name, pad_token="</s>")
    classifier(vocab_size=VOCABULARY).save_pretrained(folder / "encoder")
    causal().save_pretrained(folder / "causal")
    return folder


@cache
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def words(folder: Path) -> Any:
    network = causal()
    network.tokenizer_path = str(folder / "tokenizer")
    return network


def on_text(**more: Any) -> Callable[[Path], Arguments]:
    return lambda folder: {"tokenizer": str(folder / "tokenizer"), **more}


def writing(**more: Any) -> Callable[[Path], Arguments]:
    return lambda folder: {"network": words(folder), "folder": str(folder / "out"), **more}


def distilling(folder: Path) -> Arguments:
    return {"network": words(folder), "teacher": words(folder)}


def images(folder: Path) -> Arguments:
    return {"network": toy_network(), "num_classes": 3}


def pair(folder: Path) -> Arguments:
    return {"student": toy_network(), "teacher": toy_network(), "num_classes": 3}


def backbone(folder: Path) -> Arguments:
    return {"backbone": toy_network()[:4], "num_classes": 3}


def logits(folder: Path, classes: int = 3, **more: Any) -> Arguments:
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(4, classes, generator=draw) for _ in range(2))
    return {"student_logits": one, "teacher_logits": other, **more}


def embeddings(folder: Path) -> Arguments:
    return {"student_embedding": torch.randn(4, 3), "teacher_embedding": torch.randn(4, 3)}


def maps(folder: Path) -> Arguments:
    return {"student_features": [torch.randn(4, 3, 2, 2)], "teacher_features": [torch.randn(4, 3, 2, 2)]}


def attacked(folder: Path) -> Arguments:
    return {"model": toy_network(), "image": torch.rand(2, 3, 8, 8), "label": torch.tensor([0, 1])}


def nothing(folder: Path) -> Arguments:
    return {}


LABELS = torch.tensor([0, 1, 2, 0])
GOOD: dict[Callable[..., Any], Callable[[Path], Arguments]] = {
    # methods
    methods.Classifier: images,
    methods.MCMITeacher: images,
    methods.MCMIDistill: lambda folder: {**pair(folder), "image_shape": (3, 8, 8)},
    methods.DefensiveDistill: pair,
    methods.LinearEvaluation: backbone,
    methods.FineTune: backbone,
    methods.OBoWModule: lambda folder: {
        "student": toy_network()[:2],
        "levels": ["1"],
        "num_words": 16,
        "image_shape": (3, 16, 16),
    },
    methods.MiniLMDistill: lambda folder: {"student": classifier(), "teacher": classifier(seed=1), "heads": 2},
    methods.SequenceClassifier: lambda folder: {"network": classifier(), "num_labels": 2, "teacher": classifier()},
    methods.QuestionAnswering: lambda folder: {"network": reader(), "teacher": reader()},
    methods.LanguageModel: lambda folder: {"network": words(folder)},
    methods.LanguageDistill: distilling,
    methods.SSBDistill: distilling,
    methods.MGSRDistill: distilling,
    methods.SyntheticDistill: distilling,
    methods.Rollouts: writing(),
    methods.Refinement: writing(),
    methods.TeacherLogits: writing(),
    methods.Synthesis: writing(),
    methods.OnPolicy: nothing,
    methods.TeacherMixed: nothing,
    methods.Replay: nothing,
    methods.SCRG: lambda folder: {"source": methods.OnPolicy()},
    # data modules
    datamodules.DigitsDataModule: nothing,
    datamodules.CIFAR10DataModule: lambda folder: {"root": folder},
    datamodules.CIFAR100DataModule: lambda folder: {"root": folder},
    datamodules.TinyImageNetDataModule: lambda folder: {"root": folder},
    datamodules.ImageFolderDataModule: lambda folder: {"root": folder},
    datamodules.MultiCropViews: nothing,
    datamodules.GLUEDataModule: on_text(task="sst2"),
    datamodules.SQuADDataModule: on_text(max_length=128, stride=32),
    datamodules.TextCorpusDataModule: on_text(files=["texts.txt"]),
    datamodules.GSM8KDataModule: on_text(),
    datamodules.MATH500DataModule: on_text(),
    datamodules.AIME24DataModule: on_text(),
    datamodules.ArithmeticDataModule: on_text(),
    datamodules.ChatDataModule: on_text(chats="chats.jsonl"),
    datamodules.InstructionDataModule: on_text(),
    datamodules.SSBDataModule: on_text(refined="refined"),
    datamodules.HintsDataModule: lambda folder: {"rollouts": "rollouts"},
    datamodules.RightAnswersDataModule: on_text(rollouts="rollouts"),
    datamodules.TaskDataModule: lambda folder: {"task": "nli"},
    # callbacks
    callbacks.AnswersWriter: nothing,
    callbacks.CollapseMonitor: nothing,
    callbacks.CompileNetworks: nothing,
    callbacks.EigenCAMPanel: lambda folder: {"reference": toy_network()},
    callbacks.ExportStudent: nothing,
    callbacks.FewShotEpisodes: nothing,
    callbacks.few_shot_accuracy: lambda folder: {
        "features": torch.randn(8, 3),
        "labels": torch.arange(8) % 2,
        "ways": 2,
        "shots": 1,
        "queries": 1,
        "episodes": 2,
    },
    callbacks.KNNProbe: nothing,
    callbacks.weighted_knn: lambda folder: {
        "bank_features": torch.randn(8, 3),
        "bank_labels": torch.arange(8) % 2,
        "queries": torch.randn(2, 3),
        "k": 3,
        "temperature": 0.07,
        "num_classes": 2,
    },
    callbacks.OnlineLinearProbe: nothing,
    callbacks.ResultFile: nothing,
    callbacks.RobustnessReport: nothing,
    callbacks.VocabularyPanel: nothing,
    # models
    models.vision_model: lambda folder: {"name": "resnet8", "num_classes": 3},
    models.torchvision_model: lambda folder: {"name": "squeezenet1_1", "num_classes": 3},
    models.text_encoder: lambda folder: {"path": str(folder / "encoder"), "head": "sequence_classification"},
    models.causal_lm: lambda folder: {"path": str(folder / "causal")},
    models.load_checkpoint: lambda folder: {"network": toy_network(), "path": folder / "weights.pt"},
    models.load_exported: lambda folder: {"folder": folder / "exported"},
    models.PixelModel: lambda folder: {"network": toy_network()},
    models.FrozenTeacher: lambda folder: {"module": toy_network()},
    models.EMATeacher: lambda folder: {"student": toy_network()},
    models.FeatureTaps: lambda folder: {"network": toy_network(), "paths": ["0"]},
    models.CompletionStates: lambda folder: {"network": causal()},
    models.Vocabulary: lambda folder: {"num_words": 4, "channels": 3},
    models.BoWHead: lambda folder: {"word_channels": 3, "channels": 3},
    CIFARResNet: lambda folder: {"depth": 8},
    CIFARWideResNet: lambda folder: {"depth": 10, "widen_factor": 1},
    # losses
    losses.kd_loss: logits,
    losses.dkd_loss: lambda folder: logits(folder, labels=LABELS),
    losses.dist_loss: logits,
    losses.logit_standardization_kd_loss: logits,
    losses.soft_cross_entropy: logits,
    losses.hint_loss: lambda folder: {"student_feature": torch.randn(4, 3), "teacher_feature": torch.randn(4, 3)},
    losses.attention_transfer_loss: maps,
    losses.similarity_preserving_loss: maps,
    losses.nst_loss: maps,
    losses.hierarchical_context_loss: maps,
    losses.pkt_loss: embeddings,
    losses.rkd_loss: embeddings,
    losses.correlation_congruence_loss: embeddings,
    losses.class_centroids: lambda folder: {"logits": torch.randn(4, 3), "labels": LABELS, "num_classes": 3},
    losses.mcmi_loss: lambda folder: {
        "logits": torch.randn(4, 3),
        "labels": LABELS,
        "centroids": torch.full((3, 3), 1 / 3),
        "weight": 0.1,
    },
    losses.bow_codes: lambda folder: {
        "features": torch.randn(2, 3, 2, 2),
        "words": torch.randn(5, 3),
        "inverse_delta": 15.0,
        "mean_distance": 0.5,
    },
    losses.bow_target: lambda folder: {"codes": torch.rand(2, 3, 2, 2)},
    losses.bow_loss: lambda folder: {"logits": torch.randn(4, 3), "target": torch.rand(2, 3), "crops_per_image": 2},
    losses.WordDistances: lambda folder: {"features": torch.randn(2, 3, 2, 2), "words": torch.randn(5, 3)},
    losses.relation_loss: lambda folder: {
        "student": {name: torch.randn(2, 4, 6) for name in "qkv"},
        "teacher": {name: torch.randn(2, 4, 6) for name in "qkv"},
        "mask": torch.ones(2, 4),
        "relations": [("q", "k")],
        "heads": 2,
    },
    losses.forward_kl: logits,
    losses.reverse_kl: logits,
    losses.symmetric_kl: logits,
    losses.generalized_jsd: logits,
    losses.skew_forward_kl: logits,
    losses.skew_reverse_kl: logits,
    losses.adaptive_kl: logits,
    losses.total_variation: logits,
    losses.AdaptiveKL: nothing,
    losses.GeneralizedJSD: nothing,
    losses.SkewForwardKL: nothing,
    losses.SkewReverseKL: nothing,
    losses.SymmetricKL: nothing,
    losses.topk_kl: lambda folder: {
        "student_logits": torch.randn(4, 5),
        "teacher_indices": torch.zeros(4, 1, dtype=torch.int64),
        "teacher_logprobs": torch.zeros(4, 1),
    },
    losses.dac_kl: lambda folder: logits(folder, lower=torch.zeros(4), upper=torch.ones(4)),
    losses.DACKL: nothing,
    losses.Clip: nothing,
    losses.span_relation_loss: lambda folder: {
        "student_probs": torch.rand(1, 4, 3),
        "teacher_probs": torch.rand(1, 4, 3),
        "pairs": torch.tensor([[0, 1]]),
    },
    losses.span_relations_of_rows: lambda folder: logits(folder, pairs=torch.tensor([[0, 1]])),
    losses.chunked_loss: lambda folder: {
        "loss": lambda scores, rows: scores.sum(),
        "states": torch.randn(4, 3),
        "head": nn.Linear(3, 3),
    },
    losses.CRDLoss: lambda folder: {"student_dim": 3, "teacher_dim": 3},
    losses.ContrastMemory: lambda folder: {
        "feature_dim": 3,
        "num_negatives": 4,
        "momentum": 0.5,
        "negatives": "class",
    },
    losses.VIDRegressor: lambda folder: {"student_channels": 3, "teacher_channels": 3},
    losses.ReviewFusion: lambda folder: {"student_channels": [3, 4], "teacher_channels": [3, 4]},
    # objectives
    objectives.KD: nothing,
    objectives.DKD: nothing,
    objectives.DIST: nothing,
    objectives.LogitStandardization: nothing,
    objectives.FitNet: nothing,
    objectives.CorrelationCongruence: nothing,
    objectives.RKD: nothing,
    objectives.CRD: nothing,
    objectives.ReviewKD: nothing,
    # attacks
    Protocol: nothing,
    attacks.fgsm: attacked,
    attacks.pgd: attacked,
    attacks.apgd: attacked,
    attacks.carlini_wagner: attacked,
    attacks.autoattack: lambda folder: {**attacked(folder), "model": toy_network(num_classes=4)},
    attacks.build_suite: lambda folder: {"protocol": Protocol(), "num_classes": 3},
    attacks.TorchAttack: lambda folder: {"class_path": "torchattacks.PGD"},
    # language
    engines.Sampling: nothing,
    engines.TransformersEngine: lambda folder: {"network": words(folder), "tokenizer": tokenizer(folder)},
    engines.MixedEngine: lambda folder: {
        "network": words(folder),
        "tokenizer": tokenizer(folder),
        "other": words(folder),
        "share": 0.5,
    },
    engines.ServerEngine: lambda folder: {"model": "m", "base_url": "http://localhost:1/v1"},
    engines.VLLMEngine: lambda folder: {"path": str(folder / "causal")},
    chunkers.NgramChunker: nothing,
    chunkers.NltkChunker: nothing,
    chunkers.SpacyChunker: nothing,
    metric_of: lambda folder: {"kind": "number", "samples": 1},
}

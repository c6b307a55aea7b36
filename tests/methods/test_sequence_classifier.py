"""Fine-tuning of encoders on classes and scores: learning, metrics, teacher, recipe, resume, bad inputs."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file
from text_toy import VOCABULARY, TinyGLUE, adamw, classifier, distilbert, weights
from torch import Tensor, nn
from toy import quiet_trainer

from lit_kd.callbacks import PredictionsWriter
from lit_kd.methods import SequenceClassifier
from lit_kd.methods.sequence_classifier import class_order

MNLI = ["entailment", "neutral", "contradiction"]


def fit(module: LightningModule, data: TinyGLUE, **settings: Any) -> Trainer:
    torch.set_num_threads(1)
    trainer = quiet_trainer(**{"max_epochs": 1, **settings})
    trainer.fit(module, data)
    return trainer


def named(network: nn.Module, labels: list[str]) -> nn.Module:
    network.config.id2label = dict(enumerate(labels))  # type: ignore[union-attr]
    return network


# Learning


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("sst2", {"accuracy"}),
        ("mnli", {"accuracy", "mismatched_accuracy", "mismatched_loss"}),
        ("mrpc", {"accuracy", "f1"}),
        ("cola", {"matthews"}),
        ("stsb", {"pearson", "spearman"}),
    ],
)
def test_learns(task: str, metrics: set[str]) -> None:
    data = TinyGLUE(task)
    module = SequenceClassifier(classifier(data.num_labels), data.num_labels, task, lr=2e-2)
    found = fit(module, data, max_epochs=30 if task == "stsb" else 8).callback_metrics
    found = {name[4:]: float(value) for name, value in found.items() if name.startswith("val/")}
    assert found.keys() == metrics | {"loss"}
    assert min(value for name, value in found.items() if "loss" not in name) > 0.95


def test_learns_from_a_teacher_alone() -> None:
    data = TinyGLUE("sst2", samples=128)
    teacher = classifier()
    fit(SequenceClassifier(teacher, 2, "sst2", lr=1e-2), data, max_epochs=8)
    assert teacher.config.label2id == {"negative": 0, "positive": 1}
    before = weights(teacher)
    student = SequenceClassifier(classifier(seed=1), 2, "sst2", teacher, kd_weight=1.0, lr=1e-2)
    found = fit(student, data, max_epochs=8).callback_metrics
    assert found["val/accuracy"] > 0.95 and found["train/ce"] == 0
    assert dict.fromkeys(before, True) == {key: torch.equal(before[key], weights(teacher)[key]) for key in before}


# Metrics


@pytest.mark.parametrize("task", ["mnli", "mrpc", "cola", "stsb"])
def test_metrics_equal_those_of_other_libraries(task: str) -> None:
    judges = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")

    class Noisy(TinyGLUE):
        def columns(self, samples: int, seed: int) -> dict[str, Tensor]:
            columns = super().columns(samples, seed)
            columns["labels"][seed::4] = columns["labels"][seed::4].roll(1)
            return columns

    data = Noisy(task, eval_samples=57)
    module = SequenceClassifier(classifier(data.num_labels), data.num_labels, task, lr=2e-2)
    fit(module, data, max_epochs=6)
    numbers = quiet_trainer().validate(module, data, verbose=False)
    found = {name: value for part in numbers for name, value in part.items()}
    [*batches] = quiet_trainer().predict(module, data)
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    prediction, labels = joined["prediction"].numpy(), joined["labels"].numpy()
    expected = {
        "mnli": lambda: {"accuracy": judges.accuracy_score(labels, prediction)},
        "mrpc": lambda: {
            "accuracy": judges.accuracy_score(labels, prediction),
            "f1": judges.f1_score(labels, prediction),
        },
        "cola": lambda: {"matthews": judges.matthews_corrcoef(labels, prediction)},
        "stsb": lambda: {
            "pearson": stats.pearsonr(prediction, labels)[0],
            "spearman": stats.spearmanr(prediction, labels)[0],
        },
    }[task]()
    assert 0.02 < min(abs(value) for value in expected.values()) < 0.98  # else the comparison says little
    assert {name: found[f"val/{name}"] for name in expected} == pytest.approx(expected, abs=1e-4)
    if task == "mnli":
        assert found["val/mismatched_accuracy"] != found["val/accuracy"]


def test_the_test_stage_and_tasks_that_are_not_glues() -> None:
    data = TinyGLUE("mrpc")
    module = SequenceClassifier(classifier(), 2)
    found = quiet_trainer().test(module, data, verbose=False)[0]
    assert found.keys() == {"test/loss", "test/accuracy"}
    data = TinyGLUE("stsb")
    found = quiet_trainer().test(SequenceClassifier(classifier(1), 1), data, verbose=False)[0]
    assert found.keys() == {"test/loss", "test/pearson", "test/spearman"}


def test_predictions_are_written_once_each(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[PredictionsWriter()], default_root_dir=tmp_path)
    trainer.predict(SequenceClassifier(classifier(), 2, "sst2"), TinyGLUE(), return_predictions=False)
    written = load_file(tmp_path / "predictions.safetensors")
    assert written["index"].tolist() == list(range(31)) and written["logits"].shape == (31, 2)
    assert torch.equal(written["prediction"], written["logits"].argmax(1))


def test_predictions_of_two_loaders_are_told_apart(tmp_path: Path) -> None:
    class Two(TinyGLUE):
        def predict_dataloader(self) -> Any:
            return self.val_dataloader()

    trainer = quiet_trainer(callbacks=[PredictionsWriter()], default_root_dir=tmp_path)
    trainer.predict(SequenceClassifier(classifier(3), 3, "mnli"), Two("mnli"), return_predictions=False)
    written = load_file(tmp_path / "predictions.safetensors")
    assert written["loader"].tolist() == [0] * 31 + [1] * 35
    assert written["index"].tolist() == [*range(31), *range(35)]


# Loss


def test_distillation_loss_has_the_reference_values() -> None:
    teacher, student = torch.tensor([[2.0, 1, 0]]), torch.tensor([[1.0, 1, 0]])
    for temperature, expected in ((1.0, 0.1196297954), (2.0, 0.1239624513)):
        module = SequenceClassifier(classifier(3), 3, temperature=temperature)
        assert float(module.distillation_loss(student, teacher)) == pytest.approx(expected, abs=1e-6)
    module = SequenceClassifier(classifier(1), 1)
    assert float(module.distillation_loss(torch.tensor([[1.0], [2]]), torch.tensor([[3.0], [2]]))) == 2.0


@pytest.mark.parametrize("task", ["mnli", "stsb"])
def test_loss_of_a_batch(task: str) -> None:
    data = TinyGLUE(task)
    teacher = named(classifier(data.num_labels, seed=5), MNLI[::-1] if task == "mnli" else ["score"])
    student = classifier(data.num_labels, seed=1).eval()
    module = SequenceClassifier(
        student, data.num_labels, task, teacher, temperature=3.0, kd_weight=0.3, optimizer=adamw
    )
    batch = next(iter(data.train_dataloader()))
    module.log = module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    loss = module.training_step(batch, 0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    own, theirs = student(**inputs).logits, teacher(**inputs).logits
    if task == "mnli":
        theirs = theirs.flip(1)
        soft = F.kl_div((own / 3).log_softmax(1), (theirs / 3).softmax(1), reduction="batchmean") * 9
        expected = 0.7 * F.cross_entropy(own, batch["labels"]) + 0.3 * soft
    else:
        expected = 0.7 * (own[:, 0] - batch["labels"]).square().mean() + 0.3 * (own - theirs).square().mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())  # DDP needs no search for unused ones


def test_each_network_gets_the_keys_that_it_knows() -> None:
    teacher, student = named(classifier(), ["negative", "positive"]), distilbert()
    seen: dict[str, set[str]] = {}
    for name, network in (("teacher", teacher), ("student", student)):
        network.register_forward_pre_hook(
            lambda _, args, given, name=name: seen.update({name: set(given)}), with_kwargs=True
        )
    fit(SequenceClassifier(student, 2, "sst2", teacher, optimizer=adamw), TinyGLUE(), max_steps=1)
    assert seen["teacher"] == {"input_ids", "attention_mask", "token_type_ids"}
    assert seen["student"] == {"input_ids", "attention_mask"}


# Order of the classes


def test_logits_follow_the_names_in_the_config() -> None:
    network = named(classifier(3), ["CONTRADICTION", "Neutral", "entailment"])
    module = SequenceClassifier(network, 3, "mnli").eval()
    batch = TinyGLUE("mnli").columns(5, 0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert torch.equal(module(batch), network.eval()(**inputs).logits[:, [2, 1, 0]])
    assert network.config.id2label[0] == "CONTRADICTION"  # the network stays as it was


def test_nameless_classes_are_named_in_the_network_and_refused_in_a_teacher() -> None:
    network, teacher = classifier(3), classifier(3, seed=1)
    with pytest.raises(ValueError, match=r"teacher's config does not name the classes .*'mnli'.*give teacher_labels"):
        SequenceClassifier(network, 3, "mnli", teacher)
    module = SequenceClassifier(network, 3, "mnli", teacher, teacher_labels=["neutral", "contradiction", "entailment"])
    assert (module.order, module.teacher_order) == (None, [2, 0, 1])
    assert list(network.config.id2label.values()) == MNLI and network.config.label2id["contradiction"] == 2
    assert class_order(network, MNLI) == [0, 1, 2]
    assert class_order(network, ()) is None
    SequenceClassifier(classifier(3), 3, teacher=classifier(3, seed=1))  # without a task there is nothing to compare


# Recipe


def test_weight_decay_spares_biases_and_layer_norms() -> None:
    module = SequenceClassifier(classifier(), 2)
    optimizer = module.default_optimizer(module.network.parameters())
    names = {id(p): name for name, p in module.network.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert groups.keys() == {0.01, 0.0}
    spared = {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name}
    assert groups[0.0] == spared and groups[0.01] == set(names.values()) - spared
    assert {group["lr"] for group in optimizer.param_groups} == {2e-5}


class Rates(Callback):
    """The learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rate_of_each_step(accumulate: int) -> None:
    rates = Rates()
    module = SequenceClassifier(classifier(), 2, lr=1.0)
    settings = {"max_epochs": 3, "accumulate_grad_batches": accumulate, "callbacks": [rates]}
    fit(module, TinyGLUE(samples=56), **settings)  # 7 batches an epoch
    steps = 21 if accumulate == 1 else 12
    warmup = 3 if accumulate == 1 else 2
    expected = [min(step / warmup, (steps - step) / (steps - warmup)) for step in range(steps)]
    assert rates.rates == pytest.approx(expected)


def test_data_without_a_length_need_a_schedule() -> None:
    class Endless(TinyGLUE):
        def train_dataloader(self) -> Any:
            return (batch for batch in super().train_dataloader())

    with pytest.raises(ValueError, match="give an lr_scheduler of your own"):
        fit(SequenceClassifier(classifier(), 2), Endless(), limit_train_batches=None)
    with pytest.raises(ValueError, match="max_epochs=-1 of the Trainer"):
        fit(SequenceClassifier(classifier(), 2), TinyGLUE(), max_epochs=-1, max_steps=3)


# Checkpoints


def test_checkpoint_holds_no_teacher_and_is_read_back(tmp_path: Path) -> None:
    given = {"network": classifier(), "teacher": named(classifier(), ["negative", "positive"])}
    fit(SequenceClassifier(num_labels=2, task="sst2", **given), TinyGLUE()).save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert not [key for key in content["state_dict"] if key.startswith("teacher")]
    assert content["hyper_parameters"]["task"] == "sst2" and "network" not in content["hyper_parameters"]
    loaded = SequenceClassifier.load_from_checkpoint(
        tmp_path / "a.ckpt", weights_only=True, **{**given, "network": classifier(seed=9)}
    )
    torch.testing.assert_close(weights(loaded), content["state_dict"], rtol=0, atol=0)


# What goes wrong


one = classifier()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_labels": 3}, "network has 2 labels but num_labels=3: give both the data's number"),
        ({"task": "mnli"}, "task 'mnli' has 3 labels but num_labels=2"),
        ({"task": "sst3"}, "task='sst3' is no task of GLUE: take one of cola, sst2"),
        ({"teacher": classifier(3)}, "teacher has 3 labels but num_labels=2"),
        (
            {"teacher": classifier(vocab_size=50)},
            rf"Network and teacher have different tokenizers \({VOCABULARY} and 50 tokens\)",
        ),
        ({"network": one, "teacher": one}, "network and teacher are one object"),
        (
            {"task": "sst2", "teacher": classifier(), "teacher_labels": ["positive", "neutral"]},
            r"teacher_labels=\['positive', 'neutral'\] must be the classes \['negative', 'positive'\]",
        ),
    ],
)
def test_bad_arguments(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SequenceClassifier(**{"network": classifier(), "num_labels": 2, **settings})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda batch: {**batch, "labels": batch["labels"] + 1}, r"Labels \[1, 2\] lie outside of 0..1"),
        (lambda batch: {**batch, "labels": -torch.ones_like(batch["labels"])}, r"Labels \[-1\].*only be predicted"),
        (lambda batch: {"input_ids": batch["input_ids"]}, r"batch has no 'labels' \(it has \['input_ids'\]\)"),
        (lambda batch: (batch["input_ids"], batch["labels"]), r"no 'labels' \(it has tuple\)"),
        (lambda batch: {"ids": batch["input_ids"], "labels": batch["labels"]}, "names none of the batch's tensors"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_bad_batches(stage: str, change: Any, sentence: str) -> None:
    class Changed(TinyGLUE):
        def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> Any:
            return change(batch)

    module = SequenceClassifier(classifier(), 2, "sst2")
    with pytest.raises(ValueError, match=sentence):
        getattr(quiet_trainer(max_epochs=1, num_sanity_val_steps=0), stage)(module, Changed())


def test_a_second_loader_belongs_to_mnli() -> None:
    class Two(TinyGLUE):
        def val_dataloader(self) -> Any:
            return [super().val_dataloader(), super().val_dataloader()]

    with pytest.raises(ValueError, match="second loader for evaluation belongs to task='mnli' alone"):
        quiet_trainer().validate(SequenceClassifier(classifier(), 2, "rte"), Two())


def test_hyperparameters_hold_plain_values_only() -> None:
    module = SequenceClassifier(classifier(), 2, teacher=classifier(seed=1), optimizer=partial(torch.optim.SGD, lr=1.0))
    assert module.hparams["num_labels"] == 2
    assert not {"network", "teacher", "optimizer"} & set(module.hparams)

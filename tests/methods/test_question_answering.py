"""Fine-tuning of encoders on questions: loss, teacher, evaluation over windows, files, resume, bad inputs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from text_toy import QUESTION, TinySQuAD, reader, weights
from torch import Tensor
from toy import quiet_trainer

from lit_kd.callbacks import AnswersWriter
from lit_kd.language.squad_scores import squad_scores
from lit_kd.language.squad_spans import predict_spans
from lit_kd.methods import QuestionAnswering
from lit_kd.methods.question_answering import masked_kd_loss, position_loss


def fit(module: LightningModule, data: TinySQuAD | None = None, **settings: Any) -> Trainer:
    torch.set_num_threads(1)
    trainer = quiet_trainer(**{"max_epochs": 1, **settings})
    trainer.fit(module, data or TinySQuAD())
    return trainer


# Learning and scores


def test_learns_to_answer_and_not_to_answer() -> None:
    found = fit(QuestionAnswering(reader(), lr=2e-2), TinySQuAD(questions=96), max_epochs=10).callback_metrics
    assert found["val/f1"] > 90 and found["val/HasAns_f1"] > 90 and found["val/NoAns_f1"] > 80
    assert found["val/best_f1"] >= found["val/f1"] and found["val/best_exact"] >= found["val/exact"]
    assert {name for name in found if name.startswith("val/")} == {
        *(f"val/{kind}{name}" for kind in ("", "HasAns_", "NoAns_", "best_") for name in ("exact", "f1")),
        "val/best_exact_thresh",
        "val/best_f1_thresh",
    }


def test_learns_from_a_teacher_where_every_question_has_an_answer() -> None:
    data = TinySQuAD(questions=96, unanswerable=False)
    teacher = reader()
    fit(QuestionAnswering(teacher, lr=2e-2), data, max_epochs=10)
    before = weights(teacher)
    student = QuestionAnswering(reader(1), teacher, kd_weight=1.0, null_threshold=math.inf, lr=2e-2)
    found = fit(student, data, max_epochs=10).callback_metrics
    assert found["val/f1"] > 90 and found["train/ce"] == 0 and "val/NoAns_f1" not in found
    torch.testing.assert_close(weights(teacher), before, rtol=0, atol=0)


def test_scores_are_those_of_all_windows_of_a_question() -> None:
    data, module = TinySQuAD(batch_size=5), QuestionAnswering(reader(seed=2).eval(), null_threshold=-0.5, n_best=4)
    found = quiet_trainer().validate(module, data, verbose=False)[0]
    tokens = data._columns["val"]["input_ids"]
    with torch.no_grad():
        output = module.network(input_ids=tokens, token_type_ids=data._columns["val"]["token_type_ids"])
    logits = {i: (output.start_logits[i], output.end_logits[i]) for i in range(len(tokens))}
    answers = predict_spans(logits, data.examples["val"], data.features["val"], n_best=4, null_threshold=-0.5)
    scores = squad_scores({key: answer.text for key, answer in answers.items()}, data.examples["val"])
    assert 0 < scores["f1"] < 100
    for name, value in scores.items():
        assert "total" in name or found[f"val/{name}"] == pytest.approx(value, abs=1e-4)
    # The threshold that was found gives the score that was promised.
    best = QuestionAnswering(module.network, null_threshold=found["val/best_f1_thresh"] + 1e-5, n_best=4)
    assert quiet_trainer().validate(best, data, verbose=False)[0]["val/f1"] == pytest.approx(found["val/best_f1"])


def test_limited_batches_score_the_questions_that_came_by() -> None:
    data, module = TinySQuAD(batch_size=4), QuestionAnswering(reader())
    quiet_trainer(limit_val_batches=2).validate(module, data, verbose=False)
    trainer = quiet_trainer(limit_predict_batches=2)
    windows = trainer.predict(module, data)
    answers = module.read_answers(windows, "test")
    assert list(answers) == ["test0", "test1", "test2", "test3"]
    assert module.read_answers([*windows, *windows[:1]], "test") == answers  # a sampler's duplicates


def test_answers_are_written_in_the_official_format(tmp_path: Path) -> None:
    data, module = TinySQuAD(), QuestionAnswering(reader(), n_best=3)
    trainer = quiet_trainer(callbacks=[AnswersWriter()], default_root_dir=tmp_path)
    trainer.predict(module, data, return_predictions=False)
    texts, odds, lists = (
        json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("predictions", "null_odds", "nbest_predictions")
    )
    assert list(texts) == list(odds) == list(lists) == [f"test{number}" for number in range(21)]
    found = quiet_trainer().test(module, data, verbose=False)[0]
    assert squad_scores(texts, data.examples["test"])["f1"] == pytest.approx(found["test/f1"], abs=1e-4)
    assert all((texts[key] == "") == (odds[key] > 0) for key in texts)
    for key, entries in lists.items():
        assert 1 <= len(entries) <= 4 and sum(entry["probability"] for entry in entries) == pytest.approx(1)
        assert not texts[key] or entries[0]["text"] == texts[key]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "nbest_predictions.json", "null_odds.json", "predictions.json"
    ]  # fmt: skip


# Loss


def test_positions_beyond_the_tokens_are_left_out() -> None:
    logits = torch.tensor([[0.0, 1, 2], [3, 0, 0], [1, 1, 1]])
    expected = -(logits.log_softmax(1)[0, 2] + logits.log_softmax(1)[2, 0]) / 2
    torch.testing.assert_close(position_loss(logits, torch.tensor([2, 7, 0])), expected)


def test_loss_of_a_batch() -> None:
    data, teacher, student = TinySQuAD(), reader(5).eval(), reader(1).eval()
    module = QuestionAnswering(student, teacher, temperature=3.0, kd_weight=0.3)
    module.trainer = quiet_trainer()
    module.trainer.datamodule = data  # type: ignore[attr-defined]
    module.log = module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    batch = next(iter(data.train_dataloader()))
    loss = module.training_step(batch, 0)

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    own, theirs = student(**inputs), teacher(**inputs)
    keep = [0, *range(QUESTION + 2, 4 + 6)]  # [CLS] and the context, of windows of one length
    expected = torch.zeros(())
    for name in ("start", "end"):
        s, t = own[f"{name}_logits"], theirs[f"{name}_logits"]
        hard = F.cross_entropy(s, batch[f"{name}_positions"])
        soft = F.kl_div((s[:, keep] / 3).log_softmax(1), (t[:, keep] / 3).softmax(1), reduction="batchmean") * 9
        expected = expected + (0.7 * hard + 0.3 * soft) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in student.parameters()) and all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("temperature", [0.25, 1.0, 8.0])
def test_masked_tokens_neither_count_nor_learn(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    own, theirs = torch.randn(2, 3, 7, generator=generator) * 5
    own.requires_grad_()
    allowed = torch.tensor([[1, 0, 0, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0, 0]]).bool()
    loss = masked_kd_loss(own, theirs, allowed, temperature)
    rows = [
        F.kl_div((s[m] / temperature).log_softmax(0), (t[m] / temperature).softmax(0), reduction="sum")
        for s, t, m in zip(own, theirs, allowed, strict=True)
    ]
    torch.testing.assert_close(loss, temperature**2 * torch.stack(rows).mean())
    loss.backward()
    assert own.grad is not None and not own.grad[~allowed].any() and own.grad[0][allowed[0]].all()
    torch.testing.assert_close(
        masked_kd_loss(own.half(), theirs.half(), allowed, temperature), loss, rtol=0.1, atol=0.1
    )


def test_allowed_tokens_follow_the_padding_of_the_batch() -> None:
    module, data = QuestionAnswering(reader()), TinySQuAD()
    module.trainer = quiet_trainer()
    module.trainer.datamodule = data  # type: ignore[attr-defined]
    for length in (11, 14):
        mask = module.allowed(torch.tensor([3, 0]), length)
        assert mask.shape == (2, length) and mask.sum(1).tolist() == [7, 7]
        assert mask[0].nonzero().flatten().tolist() == [0, 4, 5, 6, 7, 8, 9]


# Resume, and what goes wrong


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"teacher": reader(vocab_size=50)}, r"Network and teacher have different tokenizers \(40 and 50 tokens\)"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        QuestionAnswering(**{"network": reader(), **settings})


@pytest.mark.parametrize("name", ["index", "start_positions"])
def test_batches_lack_something(name: str) -> None:
    class Lacking(TinySQuAD):
        def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> Any:
            return {key: value for key, value in batch.items() if key != name}

    module = QuestionAnswering(reader(), reader(1))
    with pytest.raises(ValueError, match=f"batch has no '{name}'"):
        fit(module, Lacking(), num_sanity_val_steps=0, limit_val_batches=0)


def test_the_data_module_knows_the_texts() -> None:
    with pytest.raises(ValueError, match="needs attributes examples and features"):
        quiet_trainer().validate(QuestionAnswering(reader()), TinySQuAD().val_dataloader())

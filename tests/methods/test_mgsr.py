"""MGSR on tiny networks: what the student writes, what is learnt from it, and that it goes on where it stopped."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_toy import VOCABULARY, causal, chat_tokenizer
from lightning.pytorch import Callback
from mgsr_toy import END, EOS, Dialogues, network
from text_toy import constant
from torch import Tensor
from toy import quiet_trainer

from lit_kd.cli import LitKDCLI
from lit_kd.language.chunkers import NgramChunker, span_pairs
from lit_kd.language.engines import MixedEngine, Sampling, TransformersEngine
from lit_kd.losses import (
    DACKL,
    ForwardKL,
    GeneralizedJSD,
    SkewReverseKL,
    cognitive_difference,
    error_index,
    forward_kl,
    span_relation_loss,
)
from lit_kd.methods import SCRG, FixedData, LanguageModel, MGSRDistill, OnPolicy, Replay, TeacherMixed
from lit_kd.methods.sources import Moment, TokenRow, Writing
from lit_kd.methods.writing import token_rows
from lit_kd.models import causal_lm, save_exported

FREE = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chat_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def module(path: str, source: Any = None, divergence: Any = None, **settings: Any) -> MGSRDistill:
    """Student and teacher of other weights; plain KL unless said."""
    settings = {"lr_scheduler": constant, "lr": 1e-2, **settings}
    return MGSRDistill(network(path, 1), network(path, 2), source, divergence or ForwardKL(), **settings)


def fit(found: Any, data: Any = None, *callbacks: Callback, **settings: Any) -> Any:
    trainer = quiet_trainer(**{"max_epochs": 1, "num_sanity_val_steps": 0, "callbacks": list(callbacks), **settings})
    trainer.fit(found, data or Dialogues())
    return trainer


# What the student writes


def written(found: MGSRDistill, sampling: Sampling = FREE, count: int = 8) -> list[TokenRow]:
    rows = [TokenRow(row.index, row.prompt) for row in token_rows(Dialogues().batch(count))]
    return found.writer.write(rows, Writing(sampling, 32, step=3))


def test_batches_of_what_was_written(path: str) -> None:
    """The end token counts though it pads as well, the prompt never does, and nothing is shifted (B14, B15)."""
    found = module(path)
    rows = written(found, count=16)
    assert found.writer.tokenizer.pad_token_id == EOS
    assert {row.completion[-1] for row in rows} & {EOS, END} and len({len(row.completion) for row in rows}) > 2
    batch = found.writer.batch(rows)
    assert batch.keys() == {"input_ids", "attention_mask", "completion_mask", "index"}
    for i, row in enumerate(rows):
        real, mask = batch["attention_mask"][i].bool(), batch["completion_mask"][i]
        assert tuple(batch["input_ids"][i][real].tolist()) == row.prompt + row.completion
        assert tuple(batch["input_ids"][i][mask].tolist()) == row.completion
        assert not mask[: len(row.prompt)].any() and not mask[~real].any()
    assert token_rows(batch) == rows
    assert (
        written(found, count=16) == rows and written(found, count=3) == rows[:3]
    )  # a function of seed, step and index


def test_student_is_left_as_it_was(path: str) -> None:
    found = module(path)
    found.train()
    before, state = [part.training for part in found.modules()], torch.get_rng_state()
    rows = written(found)
    found.writer.compare(rows, None)
    assert [part.training for part in found.modules()] == before and torch.equal(torch.get_rng_state(), state)
    assert found.writer.tokens == sum(len(row.completion) for row in rows)


def logits(net: Any, row: TokenRow) -> Tensor:
    with torch.no_grad():
        found: Tensor = net(input_ids=torch.tensor([row.prompt + row.completion])).logits[0]
    return found[len(row.prompt) - 1 : -1]


def test_comparison_is_that_of_each_row_alone(path: str) -> None:
    found = module(path, chunk=5)
    rows = written(found)
    differences, tokens, teacher, mask = found.writer.compare(rows, None)
    places = error_index(differences, tokens, teacher, mask)
    for i, row in enumerate(rows):
        student, other = logits(found.network, row), logits(found.teacher.module.network, row)
        alone = cognitive_difference(student, other)
        torch.testing.assert_close(differences[i][mask[i]], alone, rtol=1e-4, atol=1e-5)
        ids = torch.tensor([row.completion])
        assert (
            teacher[i][mask[i]].tolist() == other.argmax(1).tolist() and tokens[i][mask[i]].tolist() == ids[0].tolist()
        )
        assert places[i] == error_index(alone[None], ids, other.argmax(1)[None], torch.ones_like(ids).bool())[0]


def test_after_a_correction_the_student_goes_on_greedily(path: str) -> None:
    found = module(path)
    source = SCRG(OnPolicy(sampling=Sampling(8, temperature=0), max_length=32), "argmax")
    given = token_rows(Dialogues().batch(8))
    plain = OnPolicy(sampling=Sampling(8, temperature=0), max_length=32).rows(given, Moment(0, 9, 0, 0), found.writer)
    rows = source.rows(given, Moment(0, 9, 0, 0), found.writer)
    assert plain is not None and rows is not None and source.numbers()["corrected"] > 0.5
    engine = TransformersEngine(found.network, found.writer.tokenizer)
    for row, before in zip(rows, plain, strict=True):
        at = [i for i, (a, b) in enumerate(zip(row.completion, before.completion, strict=False)) if a != b]
        if not at:
            assert row == before
            continue
        prefix = row.completion[: at[0] + 1]
        other = logits(found.teacher.module.network, before)
        assert prefix[-1] == other[at[0]].argmax()
        if prefix[-1] in (EOS, END) or len(prefix) == 8:
            assert row.completion == prefix
            continue
        ((rest,),) = engine.generate([row.prompt + prefix], Sampling(8 - len(prefix), temperature=0))
        assert row.completion == prefix + (rest.ids or ())


def test_teacher_mixed_sequences_are_of_the_mixture(path: str) -> None:
    student, teacher = network(path, 1), network(path, 2)
    tokenizer = module(path).writer.tokenizer
    engine = MixedEngine(student, tokenizer, teacher, 0.3, batch_size=2000)
    prompt, other = (70, 71, 72), (80, 81, 82, 83, 84)
    found = engine.generate([prompt, other], Sampling(2, samples=1500))
    firsts = [completion.ids[0] for completion in found[0]]  # type: ignore[index]
    with torch.no_grad():
        q, p = (net(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1) for net in (student, teacher))
    mixture = 0.3 * p + 0.7 * q
    counts = torch.bincount(torch.tensor(firsts), minlength=VOCABULARY)
    chi = ((counts - 1500 * mixture).square() / (1500 * mixture)).sum().item()
    assert abs(chi - 260) < 4 * 520**0.5
    assert engine.generate([prompt], Sampling(6), keys=[5]) == engine.generate([other, prompt], Sampling(6), [0, 5])[1:]
    ends = TransformersEngine(teacher, tokenizer).generate([prompt, other], Sampling(6, seed=4))
    assert MixedEngine(student, tokenizer, teacher, 1.0).generate([prompt, other], Sampling(6, seed=4)) == ends
    ends = TransformersEngine(student, tokenizer).generate([prompt, other], Sampling(6, seed=4))
    assert MixedEngine(student, tokenizer, teacher, 0.0).generate([prompt, other], Sampling(6, seed=4)) == ends


# Loss


def completion_logits(net: Any, batch: dict[str, Any]) -> Tensor:
    found = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return found[:, :-1][batch["completion_mask"][:, 1:]]


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_loss_and_gradient(chunk: int, path: str) -> None:
    """Each term by hand from whole logits; spans that cross the border of two chunks count."""
    batch = Dialogues().batch(5)
    settings: Any = {"chunker": NgramChunker(1), "span_weight": 3.0, "kd_weight": 0.5, "ce_weight": 0.7, "chunk": chunk}
    found = module(path, None, GeneralizedJSD(0.0), **settings)
    terms, count = found.loss_sums(batch)
    ours = completion_logits(found.network, batch)
    theirs = completion_logits(found.teacher.module.network, batch).detach()
    assert count == len(ours)
    pairs, start = [], 0
    for row in token_rows(batch):
        own = span_pairs(NgramChunker(1), found.writer.tokenizer, row.completion)
        pairs += [[0, start + k] for k in own]
        start += len(row.completion)
    assert len(pairs) > 5 and found.pairs(batch) == [k for _, k in pairs]
    probs = [x.softmax(-1)[None] for x in (ours, theirs)]
    expected = {
        "ce": 0.7
        * torch.nn.functional.cross_entropy(ours, batch["input_ids"][batch["completion_mask"]], reduction="sum"),
        "kd": 0.5 * forward_kl(ours, theirs, reduction="sum"),
        "span": 3.0 * len(pairs) * span_relation_loss(*probs, torch.tensor(pairs)),
    }
    torch.testing.assert_close(terms, expected, rtol=1e-4, atol=1e-5)
    parameters = list(found.network.parameters())
    gradients = torch.autograd.grad(sum(expected.values()), parameters)  # type: ignore[arg-type]
    torch.stack(list(terms.values())).sum().backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_written_sequences_have_no_sft_term_unless_asked(path: str) -> None:
    for asked in (False, True):
        found = module(path, OnPolicy(sampling=FREE, max_length=32), sft_on_generated=asked)
        batch = {**Dialogues().batch(), "generated": True}
        assert found.loss_sums(batch)[0].keys() == ({"kd", "ce"} if asked else {"kd"})


SETTINGS: dict[str, Any] = {
    "fixed": lambda: {"source": FixedData()},
    "mgsr": lambda: {
        "source": SCRG(OnPolicy(sampling=FREE, max_length=32)),
        "divergence": DACKL(top_k=8, hidden=4),
        "chunker": NgramChunker(2),
        "span_weight": 1.0,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_splits_of_a_batch_do_not_matter(name: str, path: str) -> None:
    trained = []
    for size, accumulate in ((4, 1), (2, 2), (1, 4)):
        torch.manual_seed(0)
        found = module(path, **SETTINGS[name]())
        found.make_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.05)
        fit(found, Dialogues(size, held_out=0), accumulate_grad_batches=accumulate)
        trained.append({key: value.clone() for key, value in found.state_dict().items()})
    for other in trained[1:]:
        torch.testing.assert_close(other, trained[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: {},  # plain distillation
        lambda: {"source": OnPolicy(0.5, FREE, 32), "divergence": GeneralizedJSD(0.1)},  # GKD
        lambda: {
            "source": Replay(initial_phi=0.8, capacity=8, sampling=FREE, max_length=32),
            "divergence": SkewReverseKL(),
        },
        lambda: {"source": TeacherMixed(0.2, 1.0, FREE, 32), "kd_weight": 1.0, "ce_weight": 0.0},
        lambda: {"source": OnPolicy(1.0, FREE, 32), "kd_weight": 0.0, "sft_on_generated": True},
        lambda: SETTINGS["mgsr"](),
    ],
)
def test_methods_are_configurations(make: Any, path: str) -> None:
    found = module(path, **make())
    before = [p.detach().clone() for p in found.parameters() if p.requires_grad]
    trainer = fit(found)
    after = [p.detach() for p in found.parameters() if p.requires_grad]
    assert trainer.global_step == 4 and all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert {"train/loss", "val/loss", "val/kl"} <= trainer.callback_metrics.keys()


def test_adapter_off_is_a_teacher_of_all_that(path: str, tmp_path: Path) -> None:
    network(path, 1).save_pretrained(tmp_path)
    chat_tokenizer(tmp_path)
    student = causal_lm(str(tmp_path), lora={"r": 2, "init_lora_weights": False})
    source = SCRG(TeacherMixed(0.5, 1.0, FREE, 32))
    found = MGSRDistill(student, "adapter_off", source, chunker=NgramChunker(2), span_weight=1.0)
    trainer = fit(found)
    assert trainer.callback_metrics["val/kl"] > 0 and trainer.callback_metrics["train/corrected"] > 0


# Around the training


def test_numbers_that_are_logged(path: str) -> None:
    source = SCRG(Replay(initial_phi=1.0, capacity=8, sampling=FREE, max_length=32))
    settings = {**SETTINGS["mgsr"](), "source": source}
    metrics = fit(module(path, **settings)).callback_metrics
    names = (
        "phi",
        "written",
        "replayed",
        "corrected",
        "error_place",
        "error_difference",
        "length_before",
        "length_after",
    )
    more = ("written_tokens", "generation_seconds", "kept_classes", "kept_mass", "lower", "upper", "pairs")
    assert {f"train/{name}" for name in (*names, *more, "kd", "span")} <= metrics.keys()
    assert 2 <= metrics["train/kept_classes"] <= VOCABULARY and 0 < metrics["train/kept_mass"] <= 1
    assert metrics["train/written"] >= 0.5 and metrics["train/phi"] == 1


def test_student_is_validated_before_training(path: str, caplog: pytest.LogCaptureFixture) -> None:
    losses = []

    class Watched(Replay):
        def validated(self, loss: float) -> None:
            losses.append(loss)
            super().validated(loss)

    source = Watched(sampling=FREE, max_length=32)
    found = module(path, source, lr=1.0)
    plain = LanguageModel(network(path, 1))
    plain_trainer = quiet_trainer()
    (expected,) = plain_trainer.validate(plain, Dialogues(), verbose=False)
    with caplog.at_level(logging.INFO):
        fit(found, max_epochs=2)
    assert len(losses) == 3 and losses[0] == pytest.approx(expected["val/loss"], rel=1e-5)
    assert "Before training: val/kl 0." in caplog.text and f", val/loss {losses[0]:.4f}" in caplog.text
    assert losses[1] > losses[0] + 0.1 and source.phi > 0  # at such a rate it gets worse


def test_subnet_has_its_own_rate_and_stays_out_of_the_export(path: str, tmp_path: Path) -> None:
    found = module(path, divergence=DACKL(top_k=8, hidden=4), subnet_lr_mult=5.0)
    optimizer = found.build_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.05]
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == {id(p) for p in found.measure.parameters()}
    assert any(key.startswith("measure.") for key in found.state_dict())
    assert not any(key.startswith("teacher") for key in found.state_dict())
    save_exported(found.network, tmp_path / "export")
    assert causal_lm(str(tmp_path / "export")).state_dict().keys() == found.network.state_dict().keys()


def test_recipe(path: str) -> None:
    found = MGSRDistill(network(path, 1), network(path, 2))
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = fit(found, Dialogues(held_out=0), Watch())
    assert rates[0] == 5e-4 and rates[2] == pytest.approx(1e-7 + (5e-4 - 1e-7) / 2)
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.01
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-7)
    assert isinstance(found.measure, DACKL) and isinstance(found.source, FixedData)


def test_one_file_of_the_command_line(path: str, tmp_path: Path) -> None:
    """Sources, divergences and chunkers by class_path, nested."""
    network(path, 1).save_pretrained(tmp_path / "base")
    chat_tokenizer(tmp_path / "base")
    lm = {"class_path": "lit_kd.models.causal_lm", "init_args": {"path": str(tmp_path / "base")}}
    replay = {"class_path": "Replay", "init_args": {"capacity": 50, "sampling": {"max_new_tokens": 9}}}
    settings = {
        "network": lm,
        "teacher": lm,
        "source": {"class_path": "SCRG", "init_args": {"rounds": 2, "source": replay}},
        "divergence": {"class_path": "lit_kd.losses.GeneralizedJSD", "init_args": {"beta": 0.2}},
        "chunker": {"class_path": "lit_kd.language.chunkers.NgramChunker", "init_args": {"n": 4}},
        "span_weight": 0.5,
    }
    data = {"class_path": "ArithmeticDataModule", "init_args": {"tokenizer": str(tmp_path / "base"), "samples": 8}}
    config = {"model": {"class_path": "MGSRDistill", "init_args": settings}, "data": data}
    (tmp_path / "mgsr.yaml").write_text(json.dumps(config))
    model: Any = LitKDCLI(["--config", str(tmp_path / "mgsr.yaml")], run=False).model
    assert (model.source.rounds, model.source.source.capacity, model.source.source.sampling.max_new_tokens) == (
        2,
        50,
        9,
    )
    assert isinstance(model.measure, GeneralizedJSD) and model.chunker.n == 4


# Bad input


def test_bad_input_says_so(path: str) -> None:
    student, teacher = network(path, 1), network(path, 2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"span_weight": 1.0}, "span_weight=1.0 and chunker=None do not go together"),
        ({"kd_weight": 0.0, "source": OnPolicy()}, "source=OnPolicy lets the student write, and no term learns"),
        ({"teacher": None, "kd_weight": 0.0, "source": SCRG(OnPolicy()), "sft_on_generated": True}, "need a teacher"),
        ({"teacher": causal(vocab_size=99)}, "different tokenizers"),
    ]
    for settings, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            MGSRDistill(student, **{"teacher": teacher, **settings})


def test_bad_training_says_so(path: str) -> None:
    small = Replay(initial_phi=0.5, capacity=3)
    with pytest.raises(ValueError, match="capacity=3 is less than the batch of 4 sequences"):
        fit(module(path, SCRG(small)))
    with pytest.raises(ValueError, match="source=Replay is driven by val/loss, and nothing is held out"):
        fit(module(path, Replay()), Dialogues(held_out=0))
    found = module(path, OnPolicy())
    batch = Dialogues().batch()
    with pytest.raises(ValueError, match="pack several texts into a row"):
        found.sequences({**batch, "position_ids": batch["input_ids"]}, 0)
    batch.pop("index")
    with pytest.raises(ValueError, match="has no 'index'"):
        token_rows(batch)


def test_loss_that_is_not_finite_names_the_texts(path: str) -> None:
    found = module(path, OnPolicy(sampling=FREE, max_length=32))
    with torch.no_grad():
        found.teacher.module.network.lm_head.weight[7] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"not finite at step 0 .*indices of the batch: \[\d+, \d+, \d+, \d+\]"
    ):
        fit(found, Dialogues(held_out=0))


def test_empty_completions(path: str) -> None:
    """No completion token in a batch: a loss of 0 with gradients of 0 (B13)."""
    settings = SETTINGS["mgsr"]()
    found = module(path, **{**settings, "source": None})
    batch = Dialogues().batch()
    batch["completion_mask"] = torch.zeros_like(batch["completion_mask"])
    terms, count = found.loss_sums(batch)
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    assert total == 0 and count == 0
    assert all(p.grad is None or not p.grad.any() for p in found.parameters())
    assert len(token_rows(batch)[0].completion) == 0

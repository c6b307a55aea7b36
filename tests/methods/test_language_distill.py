"""Student and teacher at the same completion tokens: the divergence, whose it is, and that no teacher runs in vain."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from chat_toy import VOCABULARY, causal, saved
from torch import Tensor, nn

from lit_kd.language.chat import Example, collate
from lit_kd.losses import forward_kl
from lit_kd.methods import LanguageDistill
from lit_kd.models import causal_lm


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("base"))


def batch() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 250, (p + c,), generator=draw).tolist() for p, c in ((3, 4), (5, 1), (2, 9))]
    return collate([Example(row[:p], row[p:]) for row, p in zip(rows, (3, 5, 2), strict=True)], 0)


def logits(network: Any, rows: dict[str, Tensor]) -> Tensor:
    found = network(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    return found[:, :-1][rows["completion_mask"][:, 1:]]


def test_terms_are_divergence_and_cross_entropy(path: str) -> None:
    rows, student, teacher = batch(), causal_lm(path), causal(seed=3)
    teacher.tokenizer_path = path
    module = LanguageDistill(student, teacher, temperature=3.0, kd_weight=0.5, ce_weight=0.25, chunk=4)
    terms, count = module.loss_sums(rows)
    labels = rows["input_ids"][:, 1:][rows["completion_mask"][:, 1:]]
    ours, theirs = logits(student, rows), logits(teacher, rows).detach()
    kd = 0.5 * 9 * forward_kl(ours, theirs, temperature=3.0, reduction="sum")
    ce = 0.25 * F.cross_entropy(ours, labels, reduction="sum")
    assert count == 14 and float(kd.detach()) > 1
    torch.testing.assert_close(terms["kd"], kd, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["ce"], ce, rtol=1e-4, atol=1e-5)
    parameters = list(student.parameters())
    expected = torch.autograd.grad(kd + ce, parameters)
    (terms["kd"] + terms["ce"]).backward()
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)
    assert not any(name.startswith("teacher") for name in module.state_dict())


class Refusing(nn.Module):
    """A network that must not run."""

    def __init__(self, network: Any, path: str) -> None:
        super().__init__()
        self.network, self.tokenizer_path, self.config = network, path, network.config
        network.get_decoder().register_forward_pre_hook(lambda *_: pytest.fail("the teacher ran"))

    def get_base_model(self) -> Any:
        return self.network


@pytest.mark.parametrize("kind", ["network", "adapter_off", "none"])
def test_without_weight_the_teacher_never_runs(kind: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = causal_lm(path, lora={"r": 4, "target_modules": "all-linear"})
    monkeypatch.setattr(network, "disable_adapter", lambda: pytest.fail("the teacher ran"))
    refusing = Refusing(causal(seed=3), path)
    teacher: Any = {"network": refusing, "adapter_off": "adapter_off", "none": None}[kind]
    terms, _ = LanguageDistill(network, teacher, kd_weight=0.0, ce_weight=1.0).loss_sums(batch())
    assert terms.keys() == {"ce"}
    with pytest.raises(pytest.fail.Exception, match="the teacher ran"):  # the trap is one
        LanguageDistill(network, refusing if kind == "network" else "adapter_off").loss_sums(batch())


class Longer(LanguageDistill):
    """A method of its own: the teacher reads one token more in front, and the divergence is a squared distance."""

    def teacher_inputs(self, batch: Any) -> dict[str, Tensor]:
        return {name: F.pad(values, (1, 0), value=int(name != "completion_mask")) for name, values in batch.items()}

    def divergence(self, batch: Any) -> Any:
        labels = batch["input_ids"][:, 1:][batch["completion_mask"][:, 1:]]
        return lambda ours, theirs, rows: (ours - theirs).square().mean(1) * labels[rows]


def test_methods_put_in_their_own(path: str) -> None:
    rows, student, teacher = batch(), causal_lm(path), causal(seed=3, vocab_size=VOCABULARY + 3)
    teacher.tokenizer_path = path
    module = Longer(student, teacher, chunk=5)
    terms, _ = module.loss_sums(rows)
    labels = rows["input_ids"][:, 1:][rows["completion_mask"][:, 1:]]
    theirs = logits(teacher, module.teacher_inputs(rows))[:, :VOCABULARY]
    expected = ((logits(student, rows) - theirs).square().mean(1) * labels).sum()
    torch.testing.assert_close(terms["kd"], expected, rtol=1e-4, atol=1e-4)


def test_bad_input_says_so(path: str) -> None:
    network = causal_lm(path)
    for settings, sentence in (
        ({"teacher": None}, "kd_weight=1.0 needs a teacher, and it is None"),
        ({"teacher": "adapter_off"}, "it has none: give lora"),
        ({"teacher": network}, "are one object"),
    ):
        with pytest.raises(ValueError, match=sentence):
            LanguageDistill(network, **settings)  # type: ignore[arg-type]

"""Fine-tuning on a teacher's answers: the recipe, packed and plain rows, a logit term, and an exact resume."""

import json
from typing import Any

import pytest
import torch
from chat_toy import causal, saved
from toy import quiet_trainer

from lit_kd.datamodules import ChatDataModule
from lit_kd.methods import LanguageModel, SyntheticDistill
from lit_kd.models import causal_lm

LORA = {"r": 8, "lora_alpha": 128, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("base"), causal(max_position_embeddings=512))


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    for i in range(18):
        words = {"system": "s", "user": f"{i}?", "assistant": "ab" * (1 + 7 * i % 11)}
        row = {"messages": [{"role": role, "content": text} for role, text in words.items()]}
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
    return str(file)


def test_the_recipe(path: str, chats: str) -> None:
    module = SyntheticDistill(causal_lm(path))
    data = ChatDataModule(chats=chats, tokenizer=path, batch_size=3)
    rates: list[float] = []
    trainer = quiet_trainer(max_epochs=2, gradient_clip_val=1.0)
    module.on_train_batch_start = lambda *_: rates.append(trainer.optimizers[0].param_groups[0]["lr"])  # type: ignore
    trainer.fit(module, data)
    assert rates[0] == 3e-4 and rates[6] == pytest.approx(1.5e-4) and rates[-1] < 1e-5 and sorted(rates)[::-1] == rates
    matrices, vectors = trainer.optimizers[0].param_groups
    assert matrices["betas"] == (0.9, 0.95) and matrices["eps"] == 1e-5
    assert matrices["weight_decay"] == 0.1 and vectors["weight_decay"] == 0.0
    assert all(p.ndim == 2 for p in matrices["params"]) and all(p.ndim == 1 for p in vectors["params"])
    with_adapter = SyntheticDistill(causal_lm(path, lora=LORA))
    (group,) = with_adapter.default_optimizer(p for p in with_adapter.parameters() if p.requires_grad).param_groups
    assert len(group["params"]) == 28


def test_it_is_fine_tuning_and_a_logit_term_comes_on_top(path: str, chats: str) -> None:
    data = ChatDataModule(chats=chats, tokenizer=path, packing=True, max_length=120, batch_size=3)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    network, teacher = causal_lm(path), causal(seed=4, max_position_embeddings=512)
    teacher.tokenizer_path = path
    terms, count = SyntheticDistill(network).loss_sums(batch)
    plain, same = LanguageModel(network).loss_sums(batch)
    assert terms.keys() == {"ce"} and count == same
    torch.testing.assert_close(terms["ce"], plain["ce"])
    both, _ = SyntheticDistill(network, teacher, kd_weight=1.0).loss_sums(batch)
    assert both.keys() == {"ce", "kd"} and both["kd"] > 0
    torch.testing.assert_close(both["ce"], plain["ce"])
    with pytest.raises(ValueError, match="kd_weight=1.0 needs a teacher"):
        SyntheticDistill(network, kd_weight=1.0)


def test_packed_step_is_the_step_of_separate_rows(path: str, chats: str) -> None:
    trained = []
    for settings in ({"packing": True, "max_length": 400, "batch_size": 3}, {"batch_size": 18}):
        network = causal_lm(path)
        module = SyntheticDistill(network, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), lr_scheduler=constant)
        trainer = quiet_trainer(max_epochs=1)
        trainer.fit(module, ChatDataModule(chats=chats, tokenizer=path, **settings))  # type: ignore[arg-type]
        assert trainer.global_step == 1
        trained.append(list(network.parameters()))
    for a, b, start in zip(*trained, causal_lm(path).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        assert not torch.equal(a, start)


def constant(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

"""The base of the language methods: its loss against transformers' own, its count of tokens, its answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_toy import causal, saved
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from toy import quiet_trainer

from lit_kd.language.chat import Example, collate
from lit_kd.language.engines import Completion, Sampling
from lit_kd.methods.language import LanguageModel, token_weights, warn_of_unlearnt_end
from lit_kd.models import causal_lm

LENGTHS = [(3, 4), (5, 1), (2, 9), (4, 2), (1, 3), (6, 5)]


def rows(seed: int = 0, lengths: Any = LENGTHS) -> list[Example]:
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(5, 250, (p + c,), generator=draw).tolist() for p, c in lengths]
    return [Example(row[:p], row[p:]) for row, (p, _) in zip(ids, lengths, strict=True)]


class Rows(LightningDataModule):
    """Batches of given sizes, in order."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def train_dataloader(self) -> Any:
        parts = torch.arange(sum(self.sizes)).split(self.sizes)
        examples = rows()
        batches = [{**collate([examples[i] for i in part], 0), "index": part} for part in parts]
        return DataLoader(batches, batch_size=None)

    val_dataloader = train_dataloader


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.1)


def constant(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def model(network: Any, **settings: Any) -> LanguageModel:
    return LanguageModel(network, optimizer=sgd, lr_scheduler=constant, **settings)


def test_loss_is_that_of_transformers() -> None:
    network = causal()
    batch = collate(rows(), 0)
    labels = batch["input_ids"].where(batch["completion_mask"], -100)
    expected = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    terms, count = model(network, chunk=5).loss_sums(batch)
    assert count == sum(c for _, c in LENGTHS) == 24
    torch.testing.assert_close(terms["ce"] / count, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_accumulation_of_unequal_batches_is_one_batch(reduction: Any) -> None:
    """The mean of local means would be another number: texts have 1 to 9 tokens."""
    one, several = causal(), causal()
    quiet_trainer(max_epochs=1).fit(model(one, reduction=reduction), datamodule=Rows([6]))
    trainer = quiet_trainer(max_epochs=1, accumulate_grad_batches=3)
    trainer.fit(model(several, reduction=reduction), datamodule=Rows([1, 3, 2]))
    before = causal()
    for name, weight in one.named_parameters():
        torch.testing.assert_close(dict(several.named_parameters())[name], weight, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), before.parameters(), strict=True))


def test_a_window_cut_short_by_the_epoch_is_no_smaller_step() -> None:
    one, several = causal(), causal()
    quiet_trainer(max_epochs=1).fit(model(one), datamodule=Rows([6]))
    quiet_trainer(max_epochs=1, accumulate_grad_batches=8).fit(model(several), datamodule=Rows([2, 4]))
    for a, b in zip(one.parameters(), several.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_validation_is_a_mean_over_tokens() -> None:
    module = model(causal())
    (numbers,) = quiet_trainer().validate(module, datamodule=Rows([1, 3, 2]), verbose=False)
    terms, count = module.loss_sums(collate(rows(), 0))
    assert numbers["val/loss"] == pytest.approx(float(terms["ce"].detach() / count), rel=1e-5)


def test_training_loss_is_logged_as_a_mean_over_tokens() -> None:
    network = causal()
    module = LanguageModel(network, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), lr_scheduler=constant)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, datamodule=Rows([1, 3, 2]))
    terms, count = module.loss_sums(collate(rows(), 0))
    assert trainer.callback_metrics["train/loss_epoch"] == pytest.approx(float(terms["ce"].detach() / count), rel=1e-5)


def test_weights_of_tokens() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    torch.testing.assert_close(token_weights(mask, "token"), torch.ones(4))
    torch.testing.assert_close(token_weights(mask, "sequence"), torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]))


def test_a_batch_without_completions_is_zero_with_a_graph() -> None:
    module = model(causal())
    batch = collate([Example([7, 8], []), Example([9], [])], 0)
    terms, count = module.loss_sums(batch)
    terms["ce"].backward()
    assert terms["ce"] == 0 and count == 0
    mixed = collate([Example([7, 8], []), rows()[0]], 0)
    alone = module.loss_sums(collate([rows()[0]], 0))[0]["ce"]
    torch.testing.assert_close(module.loss_sums(mixed)[0]["ce"], alone)


class Parrot:
    """An engine with answers by heart."""

    def __init__(self, texts: dict[int, list[str]]) -> None:
        self.texts = texts

    def generate(self, prompts: Any, sampling: Sampling, keys: Any = None) -> list[list[Completion]]:
        return [[Completion(text, "stop", (1,), 3, len(text)) for text in self.texts[key]] for key in keys]

    def describe(self) -> dict[str, Any]:
        return {"kind": "parrot", "texts": len(self.texts)}


class Questions(LightningDataModule):
    def test_dataloader(self) -> Any:
        every = [
            {"prompt": ["2 + 3?", "2 * 5?"], "gold": ["5", "10"], "index": torch.tensor([0, 1])},
            {"prompt": ["9?"], "gold": ["9"], "index": torch.tensor([2])},
        ]
        return DataLoader(every, batch_size=None)

    predict_dataloader = test_dataloader


def test_answers_are_graded() -> None:
    parrot = Parrot({0: [r"\boxed{5}", "5"], 1: [r"\boxed{11}", "none"], 2: [r"\boxed{9}", r"\boxed{9.0}"]})
    module = LanguageModel(engine=parrot, sampling=Sampling(samples=2))
    (numbers,) = quiet_trainer().test(module, datamodule=Questions(), verbose=False)
    expected = {"pass@1": 3 / 6, "pass@2": 2 / 3, "flexible": 4 / 6, "unparsable": 2 / 6, "problems": 3, "finished": 1}
    assert {name: numbers[f"test/{name}"] for name in expected} == pytest.approx(expected)
    assert numbers["test/tokens"] == pytest.approx((9 + 1 + 10 + 4 + 9 + 11) / 6)
    batches = quiet_trainer().predict(module, datamodule=Questions())
    answers = [row["answers"][1]["text"] for batch in batches or [] for row in batch]  # type: ignore[union-attr]
    assert answers == ["5", "none", r"\boxed{9.0}"]


class Watched(Rows):
    """Completions to train on; validation has them, and questions in a second loader, the first of them with both."""

    def val_dataloader(self) -> Any:
        return [self.train_dataloader(), Questions().test_dataloader()]


def test_validation_answers_prompts(tmp_path: Path) -> None:
    """Beside the loss, so that checkpoints can be chosen by how well the model answers."""
    parrot = Parrot({0: [r"\boxed{5}"], 1: [r"\boxed{11}"], 2: [r"\boxed{9}"]})
    best = ModelCheckpoint(tmp_path, filename="{val/pass@1:.2f}", monitor="val/pass@1", mode="max")
    trainer = quiet_trainer(max_epochs=2, callbacks=[best], enable_checkpointing=True, num_sanity_val_steps=1)
    trainer.fit(model(causal(), engine=parrot), datamodule=Watched([6]))
    numbers = trainer.callback_metrics
    assert numbers["val/pass@1"] == pytest.approx(2 / 3) and numbers["val/problems"] == 3
    assert "val/loss" in numbers and float(best.best_model_score or 0) == pytest.approx(2 / 3)
    parrot.texts[1] = [r"\boxed{10}"]
    (loss, *scores) = quiet_trainer().validate(model(causal(), engine=parrot), datamodule=Watched([6]), verbose=False)
    assert {name: value for one in (loss, *scores) for name, value in one.items()}["val/pass@1"] == 1.0


def test_a_batch_may_hold_completions_and_prompts() -> None:
    batch = {**collate(rows()[:2], 0), "prompt": ["2?", "3?"], "gold": ["2", "4"], "index": torch.tensor([0, 1])}
    module = model(causal(), engine=Parrot({0: ["#### 2"], 1: ["#### 3"]}))
    (found,) = quiet_trainer().validate(module, dataloaders=DataLoader([batch], batch_size=None), verbose=False)
    assert found["val/pass@1"] == 0.5 and found["val/loss"] > 0


def test_no_prompts_no_scores() -> None:
    (found,) = quiet_trainer().validate(model(causal()), datamodule=Rows([6]), verbose=False)
    assert set(found) == {"val/loss"}


def test_labels_are_scored_as_such() -> None:
    batch = {"prompt": ["a", "b"], "gold": ["no", "yes"], "index": torch.tensor([0, 1])}
    parrot = Parrot({0: ["No."], 1: ["I say: yes"]})
    module = LanguageModel(engine=parrot, kind="label", labels=("yes", "no"))
    (found,) = quiet_trainer().test(module, dataloaders=DataLoader([batch], batch_size=None), verbose=False)
    assert (found["test/strict"], found["test/lenient"], found["test/unparsable"]) == (0.5, 1.0, 0.0)


def test_a_sharded_network_writes_no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = model(causal())
    monkeypatch.setattr(type(module), "device_mesh", object())
    with pytest.raises(ValueError, match="A sharded network does not write answers: export it"):
        module.validation_step({"prompt": ["2?"], "gold": ["2"], "index": torch.tensor([0])}, 0)


def test_the_network_answers_itself(tmp_path: Path) -> None:
    network = causal()
    network.tokenizer_path = saved(tmp_path, network)
    module = LanguageModel(network, sampling=Sampling(temperature=0.0, max_new_tokens=6))
    (numbers,) = quiet_trainer().test(module, datamodule=Questions(), verbose=False)
    assert numbers["test/problems"] == 3 and 1 <= numbers["test/tokens"] <= 6


def test_sampling_survives_a_checkpoint(tmp_path: Path) -> None:
    sampling = Sampling(temperature=0.5, samples=3)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(LanguageModel(causal(), Parrot({}), sampling=sampling), datamodule=Rows([6]))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = LanguageModel.load_from_checkpoint(tmp_path / "a.ckpt", network=causal(seed=1))
    assert again.sampling == sampling
    kept = torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]
    assert kept["sampling"]["samples"] == 3 and "engine" not in kept and "network" not in kept


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"network": None}, "network and engine are both None"),
        ({"kind": "label"}, "must be two or more that differ"),
    ],
)
def test_bad_arguments_say_so(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LanguageModel(**{"network": causal(), **settings})


def test_data_of_another_tokenizer(tmp_path: Path) -> None:
    network, data = causal(), Rows([6])
    network.tokenizer_path = saved(tmp_path / "own")
    data.tokenizer_path = saved(tmp_path / "same")  # type: ignore[attr-defined]
    quiet_trainer(max_epochs=1).fit(model(network), datamodule=data)
    file = Path(saved(tmp_path / "other")) / "tokenizer.json"
    tokens = json.loads(file.read_text())
    tokens["model"]["vocab"].update(A=tokens["model"]["vocab"]["B"], B=tokens["model"]["vocab"]["A"])
    file.write_text(json.dumps(tokens))
    data.tokenizer_path = str(tmp_path / "other")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="Data and network have different tokenizers"):
        quiet_trainer(max_epochs=1).fit(model(network), datamodule=data)


def test_a_turn_that_may_never_end(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    base, chat = saved(tmp_path / "base"), saved(tmp_path / "chat", causal(eos_token_id=[2, 4]))
    lora: dict[str, Any] = {"r": 2, "target_modules": "all-linear"}
    with pytest.warns(UserWarning, match="ends turns by <.im_end.>, the checkpoint .*base does not"):
        warn_of_unlearnt_end(causal_lm(base, lora=lora))
    recwarn.clear()
    warn_of_unlearnt_end(causal_lm(base))  # its output layer learns
    warn_of_unlearnt_end(causal_lm(base, lora={**lora, "modules_to_save": ["lm_head"]}))
    warn_of_unlearnt_end(causal_lm(chat, lora=lora))
    warn_of_unlearnt_end(causal())  # no tokenizer is known
    assert not [one for one in recwarn if "may never stop" in str(one.message)]


def test_no_completion_mask() -> None:
    with pytest.raises(ValueError, match="no 'completion_mask'"):
        model(causal()).loss_sums({"input_ids": torch.zeros(1, 2), "attention_mask": torch.ones(1, 2)})


def test_the_published_schedule() -> None:
    module = LanguageModel(causal(), warmup=0.5)
    rates: list[float] = []
    module.on_train_batch_end = lambda *args: rates.append(module.lr_schedulers().get_last_lr()[0])  # type: ignore
    quiet_trainer(max_epochs=2).fit(module, datamodule=Rows([3, 3]))
    assert rates == pytest.approx([0.0, 1e-4, 2e-4, 1e-4]) or rates == pytest.approx([1e-4, 2e-4, 1e-4, 0.0])

"""Chats as training rows: which tokens are learnt, several a row, gold mixed in, and what is no chat."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_toy import CHATML, THINKING, chat_tokenizer
from shared_data import DATA
from torch import Tensor

from lit_kd.datamodules import ChatDataModule
from lit_kd.datamodules.packing import Bins, first_fit_decreasing
from lit_kd.language.chat import encode_completion, encode_prompt, lm_tokenizer
from lit_kd.language.conversations import fault_of, read_chats, turns_of
from lit_kd.language.records import Records

LENGTHS = [9, 30, 4, 17, 50, 9, 2, 33, 9, 41, 12, 25, 8, 19, 5, 9, 27, 3, 14, 22]


def chat(*words: str, system: str | None = "Be brief.") -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(words)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def write(path: Path, chats: Any) -> str:
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in chats))
    return str(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chat_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "chats.jsonl", [chat(f"q{i}", "x" * n) for i, n in enumerate(LENGTHS)])


def data(file: str, path: str, **settings: Any) -> ChatDataModule:
    module = ChatDataModule(chats=file, tokenizer=path, **settings)
    module.setup("fit")
    return module


def learnt(batch: dict[str, Tensor], row: int, tokenizer: Any) -> list[str]:
    """The completions of a row, as text."""
    mask, ids = batch["completion_mask"][row].tolist(), batch["input_ids"][row].tolist()
    parts: list[list[int]] = []
    for i, one in enumerate(mask):
        if one:
            parts = [*parts, []] if i == 0 or not mask[i - 1] else parts
            parts[-1].append(ids[i])
    return [tokenizer.decode(part) for part in parts]


def test_every_assistant_turn_is_learnt(path: str, tmp_path: Path) -> None:
    tokenizer = lm_tokenizer(path)
    conversation = chat("hi", "hello", "2+3?", "5", "bye", "see you")
    module = data(write(tmp_path / "c.jsonl", [conversation, chat("a", "b")]), path, batch_size=2)
    (batch,) = module.train_dataloader()
    (row,) = [i for i in range(2) if batch["index"][i] == 0]
    assert learnt(batch, row, tokenizer) == ["hello<|im_end|>", "5<|im_end|>", "see you<|im_end|>"]
    whole = encode_prompt(tokenizer, conversation[:-1]) + encode_completion(tokenizer, "see you")
    assert batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() == whole
    assert learnt(batch, 1 - row, tokenizer) == ["b<|im_end|>"]


def test_each_completion_stands_behind_the_prompt_of_generation(tmp_path: Path) -> None:
    conversation = chat("hi", "hello", "2+3?", "5")
    for template, rows in ((CHATML, 1), (THINKING, 2), (CHATML.replace("m['content']", "m['content'] | trim"), 1)):
        tokenizer = lm_tokenizer(chat_tokenizer(tmp_path / str(len(template)), template))
        found = turns_of(tokenizer, conversation)
        assert len(found) == rows
        for place in (2, 4):
            prompt = encode_prompt(tokenizer, conversation[:place])
            completion = encode_completion(tokenizer, conversation[place]["content"])
            assert any(
                one.ids[: len(prompt) + len(completion)] == prompt + completion
                and all(one.learnt[len(prompt) : len(prompt) + len(completion)])
                for one in found
            )
        assert sum(map(sum, (one.learnt for one in found))) == len("hello") + len("5") + 2
    trimmed = turns_of(tokenizer, chat("hi", "hello ", "2+3?", "5"))  # the history has other ids than were learnt
    assert [sum(one.learnt) for one in trimmed] == [7, 2]


def test_first_fit_decreasing_is_that() -> None:
    draw = torch.Generator().manual_seed(0)
    for count, capacity in ((1, 5), (60, 100), (200, 37)):
        lengths = torch.randint(1, capacity + 1, (count,), generator=draw).sort(descending=True).values.tolist()
        bins: list[list[int]] = []
        for position, length in enumerate(lengths):
            for one in bins:
                if sum(lengths[i] for i in one) + length <= capacity:
                    one.append(position)
                    break
            else:
                bins.append([position])
        assert first_fit_decreasing(lengths, capacity) == bins
    assert first_fit_decreasing([], 3) == []
    with pytest.raises(ValueError, match="7 tokens does not fit into a row of 6"):
        first_fit_decreasing([7], 6)


def test_passes_exchange_texts_of_one_length() -> None:
    lengths = torch.tensor([3, 5, 3, 3, 5, 2, 3, 2, 5, 3])
    bins = Bins(torch.arange(10) + 100, lengths, 8, seed=1)
    passes = [[bins.texts(number, visit) for number in range(len(bins.slots))] for visit in (0, 1, 0, 2)]
    assert passes[0] == passes[2] and passes[0] != passes[1] != passes[3]
    for one in passes:
        assert sorted(text for row in one for text in row) == list(range(100, 110))
        assert [[int(lengths[text - 100]) for text in row] for row in one] == [
            [int(lengths[text - 100]) for text in row] for row in passes[0]
        ]
        assert bins.filled.tolist() == [sum(int(lengths[text - 100]) for text in row) for row in one]


@pytest.mark.parametrize("workers", [0, 2])
def test_packed_rows_hold_each_chat_once_a_pass(workers: int, file: str, path: str) -> None:
    plain = data(file, path, batch_size=len(LENGTHS))
    (whole,) = plain.train_dataloader()
    ids = {
        int(n): row[mask.bool()]
        for n, row, mask in zip(*map(whole.get, ("index", "input_ids", "attention_mask")), strict=True)  # type: ignore
    }
    module = data(file, path, batch_size=1, packing=True, max_length=150, num_workers=workers, pad_to_multiple_of=8)
    loader = module.train_dataloader()
    orders = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        orders.append([batch["index"].tolist() for batch in batches])
        assert sorted(n for order in orders[-1] for n in order) == list(range(len(LENGTHS)))
        for batch in batches:
            real = batch["attention_mask"][0].bool()
            assert batch["input_ids"].shape[1] % 8 == 0 and real.sum() <= 150
            assert torch.equal(batch["input_ids"][0][real], torch.cat([ids[n] for n in batch["index"].tolist()]))
            positions = torch.cat([torch.arange(len(ids[n])) for n in batch["index"].tolist()])
            assert torch.equal(batch["position_ids"][0][real], positions) and not batch["position_ids"][0][~real].any()
            assert not batch["completion_mask"][0][batch["position_ids"][0] == 0].any()
        assert len(batches) == len(loader) < len(LENGTHS) / 2
    assert orders[0] != orders[1]


def test_packed_epoch_goes_on_in_the_middle(file: str, path: str) -> None:
    straight = data(file, path, batch_size=1, packing=True, max_length=100).train_dataloader()
    batches = list(straight)
    first = data(file, path, batch_size=1, packing=True, max_length=100).train_dataloader()
    iterator = iter(first)
    for _ in range(2):
        next(iterator)
    resumed = data(file, path, batch_size=1, packing=True, max_length=100).train_dataloader()
    resumed.load_state_dict(first.state_dict())
    rest = list(resumed)
    assert len(rest) == len(batches) - 2 > 1
    for a, b in zip(rest, batches[2:], strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_gold_is_mixed_in_by_its_share(path: str, tmp_path: Path) -> None:
    synthetic = write(tmp_path / "s.jsonl", [chat(f"s{i}", "a") for i in range(12)])
    gold = write(tmp_path / "g.jsonl", [chat(f"g{i}", "b") for i in range(9)])
    module = data(synthetic, path, gold=gold, gold_fraction=0.25, batch_size=16)
    (batch,) = module.train_dataloader()
    texts = lm_tokenizer(path).batch_decode(batch["input_ids"])
    assert sum("user\ng" in text for text in texts) == 4 and sum("user\ns" in text for text in texts) == 12
    with pytest.raises(ValueError, match="gold_fraction=0.5 beside 12 chats asks for 12 gold ones, and .* has 9"):
        data(synthetic, path, gold=gold)


def test_validation_is_held_out_or_a_file(file: str, path: str, tmp_path: Path) -> None:
    other = write(tmp_path / "v.jsonl", [chat("v", "w"), chat("v", "w2")])
    assert data(file, path).val_dataloader() == []
    module = data(file, path, val=other, packing=True)
    ((batch,),) = (list(loader) for loader in module.val_dataloader())
    assert len(batch["input_ids"]) == 2 and "position_ids" not in batch
    module = data(file, path, val_fraction=0.2, packing=True, max_length=200, batch_size=1)
    (loader,) = module.val_dataloader()
    held = {n for batch in loader for n in batch["index"].tolist()}
    trained = {n for batch in module.train_dataloader() for n in batch["index"].tolist()}
    assert len(held) == 4 and held | trained == set(range(20)) and not held & trained


def test_folders_of_a_teacher(path: str, tmp_path: Path) -> None:
    records = Records(tmp_path / "rows", {"stage": "Synthesis", "task": "math"})
    kept = [{"index": i, "messages": chat(f"q{i}", "a"), "reason": None} for i in (4, 2)]
    records.append([*kept, {"index": 3, "messages": chat("q")[:1], "reason": "no answer"}])
    assert [one[1]["content"] for one in read_chats(str(tmp_path / "rows"))] == ["q2", "q4"]
    module = data(str(tmp_path / "rows"), path)
    assert module.describe()["chats"] == {"stage": "Synthesis", "task": "math"} and module.describe()["gold"] is None


def test_bad_input_says_so(path: str, tmp_path: Path) -> None:
    bad = [
        (chat("a", "b", system=None), "Row 1 of .*bad.jsonl has no system message first: add one, or say"),
        (chat("a", "b", "c"), "has the roles system, user, assistant, user: .* the last turn is the assistant's"),
        ([*chat("a"), *chat("a", "b", system=None)], "system, user, user, assistant: behind the system message"),
        (chat(), "has the roles system: behind"),
        (chat("a", " "), "has an empty message of the role assistant"),
        ([{"role": "system"}], "has a message without role and text content"),
        ([], 'has no list "messages"'),
    ]
    for messages, sentence in bad:
        with pytest.raises(ValueError, match=sentence):
            data(write(tmp_path / "bad.jsonl", [messages]), path)
    assert fault_of(chat("a", "b", system=None), system_required=False) is None
    (tmp_path / "broken.jsonl").write_text(json.dumps({"messages": chat("a", "b")}) + '\n{"messages": \n')
    with pytest.raises(ValueError, match=r"Row 2 of .*broken.jsonl is no JSON"):
        data(str(tmp_path / "broken.jsonl"), path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty.jsonl holds no chat to train on"):
        data(str(tmp_path / "empty.jsonl"), path)
    with pytest.raises(FileNotFoundError, match="There is no file or folder nowhere"):
        data("nowhere", path)
    good = write(tmp_path / "good.jsonl", [chat("a", "b"), chat("a", "b" * 90)])
    with pytest.raises(ValueError, match="None of the 2 rows of .*good.jsonl has at most max_length=20 tokens"):
        data(good, path, max_length=20)
    with pytest.warns(UserWarning, match="1 of 2 rows of .*good.jsonl are over max_length=100 tokens and left out"):
        data(good, path, max_length=100)
    with pytest.raises(ValueError, match="leave one out"):
        ChatDataModule(chats=good, tokenizer=path, val=good, val_fraction=0.1)
    with pytest.raises(ValueError, match="has chats to train on, and nothing for test"):
        ChatDataModule(chats=good, tokenizer=path).setup("test")


@pytest.mark.skipif(not (DATA / "gsm8k/train.jsonl").is_file(), reason="no GSM8K in ../shared/data")
def test_packing_wastes_little_of_gsm8k(path: str, tmp_path: Path) -> None:
    with (DATA / "gsm8k/train.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines][:400]
    file = write(tmp_path / "gsm8k.jsonl", [chat(row["question"], row["answer"]) for row in rows])
    packed = data(file, path, packing=True, max_length=8192).sets["train"][0]
    assert 1 - float(packed.lengths.sum()) / (len(packed) * 8192) < 0.05

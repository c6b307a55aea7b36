"""Instructions in the formats of Dolly and of MiniLLM's evaluation sets."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from chat_toy import chat_tokenizer
from text_recorder import indices
from tokenizers import Tokenizer, models, pre_tokenizers
from toy import quiet_trainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_kd.datamodules import InstructionDataModule
from lit_kd.language.instructions import Instruction, alpaca_prompt, read_instruction

# Ends of lines that only str.splitlines knows, an emoji of several code points, right-to-left text, combining marks.
EXOTIC = "a\u2028b\u0085c\x1cd \U0001f469\u200d\U0001f52c \u0634\u0643\u0631\u0627 e\u0301 \ufeff{x} {instruction}"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chat_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def dolly(i: int) -> dict[str, Any]:
    """Every third row has a context; row 5 is exotic."""
    context = f"context {i}" if i % 3 == 0 else ""
    text = EXOTIC if i == 5 else f"Instruction {i}"
    return {"instruction": text, "context": context, "response": f"Response {i}", "category": "closed_qa"}


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_bytes(("\n".join(lines) + "\n").encode())
    return str(file)


def module(path: str, folder: Path, count: int = 12, **settings: Any) -> InstructionDataModule:
    file = write(folder / "raw.jsonl", [dolly(i) for i in range(count)])
    return InstructionDataModule(**{"tokenizer": path, "train": file, "val_samples": 4, "batch_size": 2, **settings})


def ready(data: Any, *stages: str) -> Any:
    for stage in stages or ("fit",):
        data.setup(stage)
    return data


def test_the_template_is_alpacas() -> None:
    assert alpaca_prompt(Instruction("Do {x}.", "With {instruction}.", ("y",))) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo {x}.\n\n### Input:\nWith {instruction}.\n\n### Response:\n"
    )
    assert alpaca_prompt(Instruction("Do.", "", ("y",))) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo.\n\n### Response:\n"
    )


def test_columns_of_dolly_alpaca_and_the_evaluation_sets() -> None:
    row = {"instruction": "a", "context": "b", "response": "c", "category": "d"}
    assert read_instruction(row) == Instruction("a", "b", ("c",))
    row = {"prompt": "ignored", "instruction": "a", "input": " \n", "output": ["c", "", "d"]}
    assert read_instruction(row) == Instruction("a", "", ("c", "", "d"))
    assert read_instruction({"instruction": " a\n", "output": "c "}) == Instruction(" a\n", "", ("c ",))


def test_the_first_lines_validate_and_the_rest_trains(path: str, tmp_path: Path) -> None:
    data = ready(module(path, tmp_path))
    assert sorted(indices(data.train_dataloader())) == list(range(4, 12))
    (val,) = data.val_dataloader()
    assert sorted(indices(val)) == [0, 1, 2, 3] and data.kind == "overlap"
    own = AutoTokenizer.from_pretrained(path)
    for batch in [*data.train_dataloader(), *val]:
        assert batch.keys() == {"input_ids", "attention_mask", "completion_mask", "index"}
        for ids, mask, completion, i in zip(*(batch[name] for name in ("input_ids", "attention_mask", "completion_mask", "index")), strict=True):  # fmt: skip  # noqa: E501
            row = read_instruction(dolly(int(i)))
            real = mask.bool()
            assert own.decode(ids[real & ~completion]) == "<s>" + alpaca_prompt(row)
            assert own.decode(ids[completion]) == f"Response {int(i)}<|im_end|>"  # what ends a turn of this tokenizer
            assert ids[0] == own.bos_token_id and mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_without_a_template_the_eos_ends_a_response(tmp_path: Path) -> None:
    path = chat_tokenizer(tmp_path / "plain", template=None)
    batch = next(iter(ready(module(path, tmp_path)).train_dataloader()))
    own = AutoTokenizer.from_pretrained(path)
    for ids, completion in zip(batch["input_ids"], batch["completion_mask"], strict=True):
        assert own.decode(ids[completion]).endswith("</s>") and (ids[completion] == own.eos_token_id).sum() == 1


def test_chats(path: str, tmp_path: Path) -> None:
    data = ready(module(path, tmp_path, prompt="chat", eval_batch_size=1), "test")
    prompts = [batch["prompt"][0] for batch in data.test_dataloader()[0]]
    assert prompts[0] == [{"role": "user", "content": "Instruction 0\n\ncontext 0"}]
    assert prompts[1] == [{"role": "user", "content": "Instruction 1"}]


def test_long_prompts_are_counted_and_long_responses_are_cut(path: str, tmp_path: Path) -> None:
    lengths = [len(alpaca_prompt(read_instruction(dolly(i))).encode()) + 1 for i in range(12)]
    with_context = [i for i in range(12) if i % 3 == 0]
    most = max(n for i, n in enumerate(lengths) if i not in with_context)
    settings: dict[str, Any] = {"max_prompt_length": most, "max_length": most + 5}
    assert all(lengths[i] > most for i in with_context)
    with pytest.warns(UserWarning, match=f"4 of 12 rows have prompts of over max_prompt_length={most} tokens"):
        data = ready(module(path, tmp_path, **settings))
    assert sorted(indices(data.train_dataloader())) == [4, 5, 7, 8, 10, 11]
    (val,) = data.val_dataloader()
    assert sorted(indices(val)) == [1, 2]  # the split is of all lines, not of those that fit
    own = AutoTokenizer.from_pretrained(path)
    for batch in val:
        for ids, completion, mask, i in zip(*(batch[name] for name in ("input_ids", "completion_mask", "attention_mask", "index")), strict=True):  # fmt: skip  # noqa: E501
            room = most + 5 - lengths[int(i)]
            assert mask.sum() == min(most + 5, lengths[int(i)] + len("Response 1") + 1)
            assert own.decode(ids[completion]) == (f"Response {int(i)}<|im_end|>" if room > 10 else "Response 1"[:room])


def test_prompts_to_answer(path: str, tmp_path: Path) -> None:
    data = ready(module(path, tmp_path, eval_batch_size=3, limit=4), "test", "predict")
    for (loader,) in (data.test_dataloader(), data.predict_dataloader()):
        batches = list(loader)
        assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2, 3]]
        assert batches[0].keys() == {"prompt", "gold", "index"} and batches[0]["index"].dtype == torch.int64
        assert batches[0]["gold"] == [["Response 0"], ["Response 1"]]
        assert batches[0]["prompt"] == [alpaca_prompt(read_instruction(dolly(i))) for i in (0, 1)]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("dolly", "dolly/valid.jsonl"),
        ("self_instruct", "self-inst/valid.jsonl"),
        ("vicuna", "vicuna/valid.jsonl"),
        ("s_ni", "sinst/11_/valid.jsonl"),
        ("unnatural", "uinst/11_/valid.jsonl"),
        ("own/set.jsonl", "own/set.jsonl"),
    ],
)
def test_evaluation_sets_lie_where_minillm_has_them(name: str, file: str, path: str, tmp_path: Path) -> None:
    outputs: list[Any] = ["one", ["two", "zwei"], [EXOTIC]]
    rows = [{"prompt": "p", "instruction": f"i{i}", "input": "", "output": text} for i, text in enumerate(outputs)]
    write(tmp_path / file, rows)
    data = ready(InstructionDataModule(tokenizer=path, root=tmp_path, test=name), "test")
    ((batch,),) = data.test_dataloader()
    assert batch["gold"] == [["one"], ["two", "zwei"], [EXOTIC]] and batch["index"].tolist() == [0, 1, 2]
    assert json.loads(json.dumps(data.describe()))["test"] == name


def test_held_out_prompts_can_be_answered_in_validation(path: str, tmp_path: Path) -> None:
    data = ready(module(path, tmp_path, answer_in_validation=3))
    chats, prompts = data.val_dataloader()
    assert sorted(indices(chats)) == [0, 1, 2, 3]
    (batch,) = prompts
    assert batch["index"].tolist() == [0, 1, 2] and batch["gold"][2] == ["Response 2"]
    assert "input_ids" not in batch and batch["prompt"][0] == alpaca_prompt(read_instruction(dolly(0)))


def test_subsets_leave_the_held_out_rows_alone(path: str, tmp_path: Path) -> None:
    few = ready(module(path, tmp_path, train_samples=3))
    assert len(set(indices(few.train_dataloader()))) == 3 and min(indices(few.train_dataloader())) >= 4
    assert sorted(indices(few.val_dataloader()[0])) == [0, 1, 2, 3]
    assert ready(module(path, tmp_path, val_samples=0)).val_dataloader() == []


def test_the_hub_has_dolly(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, split: str) -> list[dict[str, Any]]:
        asked.append((name, split))
        return [dolly(i) for i in range(6)]

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = ready(InstructionDataModule(tokenizer=path, val_samples=2, batch_size=1))
    assert asked == [("databricks/databricks-dolly-15k", "train")]
    assert sorted(indices(data.train_dataloader())) == [2, 3, 4, 5]


def test_ids_above_65535_survive(tmp_path: Path) -> None:
    """Peers store 16-bit ids and separate prompt from response by 65535, which is a token of large vocabularies."""
    names = {"<end>": 0, "<unk>": 1, **{f"w{i}": i for i in range(2, 70000)}}
    raw = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", unk_token="<unk>").save_pretrained(tmp_path)
    rows = [{"instruction": "w65535 w69999", "input": "w65536", "output": "w65535 w65534 w69998"}] * 2
    file = write(tmp_path / "raw.jsonl", rows)
    data = ready(InstructionDataModule(tokenizer=str(tmp_path), train=file, val_samples=0, batch_size=2))
    (batch,) = data.train_dataloader()
    for ids, completion in zip(batch["input_ids"], batch["completion_mask"], strict=True):
        assert ids[completion].tolist() == [65535, 65534, 69998, 0]
        assert {65535, 69999, 65536} <= set(ids[~completion].tolist())


def test_fits_from_a_loader_of_the_trainer(path: str, tmp_path: Path) -> None:
    """Through the Trainer: order, resume and shards are those of every text data module."""
    from text_recorder import Recorder

    recorder = Recorder()
    quiet_trainer(max_epochs=1).fit(recorder, module(path, tmp_path))
    assert sorted(i for batch, _ in recorder.seen for i in batch) == list(range(4, 12))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"val_fraction": 0.1}, "val_fraction=0.1 must stay 0: the first val_samples=4 validate"),
        ({"test": "vicuna"}, "test='vicuna' is the file vicuna/valid.jsonl of MiniLLM's data: give root, or a file"),
        ({"val_samples": 12}, "val_samples=12 holds out all 12 rows of .*raw.jsonl: lower it"),
        ({"max_prompt_length": 9}, "No prompt of the training or of the held-out rows has at most max_prompt_length=9"),
    ],
)
def test_bad_arguments_say_so(settings: dict[str, Any], sentence: str, path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        ready(module(path, tmp_path, **settings))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"instruction": "a"}, r"'output' \(or 'response'\) must be a text or a list of texts, got None; the col"),
        ({"instruction": "a", "output": []}, r"must be a text or a list of texts, got \[\]"),
        ({"instruction": "a", "output": ["b", 3]}, r"must be a text or a list of texts, got \['b', 3\]"),
        ({"instruction": " ", "output": "b"}, "'instruction' must be a text, got ' '; the columns are instruction"),
        ({"instruction": "a", "context": 3, "response": "b"}, r"'input' \(or 'context'\) must be a text, got 3"),
    ],
)  # fmt: skip
def test_bad_rows_say_where(row: dict[str, Any], sentence: str, path: str, tmp_path: Path) -> None:
    file = write(tmp_path / "raw.jsonl", [dolly(0), row])
    with pytest.raises(ValueError, match=f"raw.jsonl, line 2, is no instruction: .*{sentence}"):
        ready(InstructionDataModule(tokenizer=path, train=file, val_samples=1))


def test_missing_files(path: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sinst/11_/valid.jsonl does not exist: give a file with one instruct"):
        ready(InstructionDataModule(tokenizer=path, root=tmp_path, test="s_ni"), "test")

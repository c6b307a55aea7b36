"""Problems as chats to train on and as questions to answer: GSM8K, MATH500, AIME, arithmetic."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from text_recorder import Recorder, indices, straight_and_resumed
from toy import quiet_trainer
from transformers import AutoTokenizer

from lit_kd.datamodules import (
    AIME24DataModule,
    ArithmeticDataModule,
    GSM8KDataModule,
    MATH500DataModule,
    ProblemDataModule,
    TextDataModule,
)
from lit_kd.language.answers import grade
from lit_kd.language.arithmetic import make_arithmetic, train_tokenizer
from lit_kd.language.chat import encode_completion, encode_prompt
from lit_kd.language.hints import TUTOR, question_prompt

Ranks = Callable[[int, int], None]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train_tokenizer(tmp_path_factory.mktemp("arithmetic") / "tokenizer", size=400)


def gsm8k(root: Path, train: int = 11, test: int = 5, change: Any = None) -> Path:
    """Files in the official format, solutions of different lengths; `change` makes others of the rows."""
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("test", test)):
        rows = [
            {"question": f"{part} {i}?", "answer": "1+1=<<1+1=2>>2\n" * (3 * i % 7) + f"So {i}\n#### {i}"}
            for i in range(count)
        ]
        rows = [change(i, row) if change and part == "train" else row for i, row in enumerate(rows)]
        (root / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def ready(data: TextDataModule, *stages: str) -> Any:
    for stage in stages or ("fit",):
        data.setup(stage)
    return data


def questions(loader: Any) -> list[str]:
    return [question for batch in loader for question in batch["question"]]


def test_chats_end_with_the_solution(path: str, tmp_path: Path) -> None:
    data = ready(GSM8KDataModule(tokenizer=path, root=gsm8k(tmp_path), batch_size=4, system_prompt="Solve."))
    own = AutoTokenizer.from_pretrained(path)
    seen = []
    for batch in data.train_dataloader():
        assert batch.keys() == {"input_ids", "attention_mask", "completion_mask", "index"}
        assert batch["completion_mask"].dtype == torch.bool and batch["index"].dtype == torch.int64
        for ids, mask, completion, index in zip(*(batch[name] for name in ("input_ids", "attention_mask", "completion_mask", "index")), strict=True):  # fmt: skip  # noqa: E501
            length = int(mask.sum())
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            assert (
                own.decode(ids[~completion & mask.bool()]) == f"<system>Solve.<end><user>train {index}?<end><assistant>"
            )
            assert (
                own.decode(ids[completion]) == "1+1=2\n" * (3 * int(index) % 7) + f"So {index}\n\\boxed{{{index}}}<end>"
            )
            seen.append(int(index))
    assert len(seen) == 12 and set(seen) == set(range(11))
    assert data.kind == "number" and data.tokenizer_path == path and data.system_prompt == "Solve."
    assert data.val_dataloader() == []


def test_batches_can_be_padded_to_multiples(path: str, tmp_path: Path) -> None:
    data = ready(GSM8KDataModule(tokenizer=path, root=gsm8k(tmp_path), batch_size=3, pad_to_multiple_of=16))
    plain = ready(GSM8KDataModule(tokenizer=path, root=tmp_path, batch_size=3))
    for padded, batch in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        length = batch["input_ids"].shape[1]
        assert padded["input_ids"].shape[1] == -(-length // 16) * 16
        assert all(torch.equal(padded[name][:, :length], batch[name]) for name in batch if name != "index")
        assert not padded["attention_mask"][:, length:].any() and not padded["completion_mask"][:, length:].any()


def test_questions_to_answer(path: str, tmp_path: Path) -> None:
    data = ready(GSM8KDataModule(tokenizer=path, root=gsm8k(tmp_path), eval_batch_size=2), "test", "predict")
    for (loader,) in (data.test_dataloader(), data.predict_dataloader()):
        batches = list(loader)
        assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
        assert batches[1].keys() == {"index", "question", "gold", "prompt"} and batches[1]["index"].dtype == torch.int64
        assert (batches[1]["question"], batches[1]["gold"]) == (["test 2?", "test 3?"], ["2", "3"])


def test_rollouts_are_of_what_is_trained_on(path: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tokenizer": path, "root": gsm8k(tmp_path), "val_fraction": 0.2}
    data = ready(GSM8KDataModule(predict_on="train", **settings), "fit", "test", "predict")
    (train,), (val,) = data.sets["train"], data.sets["val"]
    assert len(train.index) == 9 and sorted(indices(data.val_dataloader()[0])) == val.index.tolist()
    assert indices(data.predict_dataloader()[0]) == train.index.tolist()
    assert sorted([*train.index.tolist(), *val.index.tolist()]) == list(range(11))
    assert questions(data.predict_dataloader()[0])[0] == f"train {train.index[0]}?"
    assert questions(data.test_dataloader()[0]) == [f"test {i}?" for i in range(5)]
    first = ready(GSM8KDataModule(predict_on="train", limit=3, **settings), "test", "predict")
    assert indices(first.predict_dataloader()[0]) == train.index[:3].tolist()
    assert indices(first.test_dataloader()[0]) == [0, 1, 2]


def unsolved(path: str, folder: Path, **settings: Any) -> ArithmeticDataModule:
    """Arithmetic whose every third problem has no solution."""

    class Unsolved(ArithmeticDataModule):
        def chat(self, index: int, problem: Any) -> Any:
            prompt, completion = super().chat(index, problem)
            return prompt, completion if index % 3 else None

    return Unsolved(tokenizer=path, samples=9, batch_size=1, **settings)


def test_rows_without_a_solution_are_counted(path: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="3 of 9 training rows have no solution or over max_length=512 tokens"):
        data = ready(unsolved(path, tmp_path))
    assert sorted(indices(data.train_dataloader())) == [1, 2, 4, 5, 7, 8]


def test_long_rows_are_counted_and_none_is_cut(path: str, tmp_path: Path) -> None:
    own = AutoTokenizer.from_pretrained(path)
    problems = [make_arithmetic(0, "train", i, [1, 2, 3]).problem() for i in range(50)]
    lengths = [len(encode_prompt(own, question_prompt(p.question, None)) + encode_completion(own, p.solution or "")) for p in problems]  # fmt: skip  # noqa: E501
    middle = sorted(lengths)[25]
    with pytest.warns(UserWarning, match=f"{sum(n > middle for n in lengths)} of 50 training rows .*={middle} tokens"):
        data = ready(ArithmeticDataModule(tokenizer=path, samples=50, max_length=middle, batch_size=1))
    assert sorted(indices(data.train_dataloader())) == [i for i, n in enumerate(lengths) if n <= middle]
    for batch in data.train_dataloader():
        assert batch["input_ids"].shape[1] == lengths[batch["index"]]


def test_held_out_problems_do_not_depend_on_what_is_left_out(path: str, tmp_path: Path) -> None:
    whole = ready(ArithmeticDataModule(tokenizer=path, samples=9, val_fraction=0.4))
    with pytest.warns(UserWarning, match="3 of 9"):
        rest = ready(unsolved(path, tmp_path, val_fraction=0.4))
    for split in ("train", "val"):
        (every,), (some,) = whole.sets[split], rest.sets[split]
        assert some.index.tolist() == [i for i in every.index.tolist() if i % 3]


# From the hub, by files, and from the command line


def test_names_and_splits_of_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*name: str, split: str) -> list[dict[str, Any]]:
        asked.append((*name, split))
        if name[0] == "openai/gsm8k":
            return [{"question": split, "answer": "1\n#### 1"}]
        if name[0] == "HuggingFaceH4/MATH-500":
            return [{"problem": split, "solution": "\\boxed{x}", "answer": "x", "subject": "Algebra", "level": 2}]
        return [{"ID": "2024-I-1", "Problem": split, "Solution": "\\boxed{7}", "Answer": 7}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = []
    for module in (GSM8KDataModule, MATH500DataModule, AIME24DataModule):
        data = ready(module(tokenizer=path), "test")
        ((batch,),) = data.test_dataloader()
        found.append((data.kind, batch["question"], batch["gold"]))
    assert found == [("number", ["test"], ["1"]), ("math", ["test"], ["x"]), ("integer", ["train"], ["7"])]
    ready(GSM8KDataModule(tokenizer=path, batch_size=1))
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("HuggingFaceH4/MATH-500", "test"),
        ("Maxwell-Jia/AIME_2024", "train"),
        ("openai/gsm8k", "main", "train"),
    ]


def test_real_files(path: str, real_data: Path) -> None:
    """Every problem once, with its answer, and GSM8K to train on."""
    counts = {"gsm8k": (GSM8KDataModule, 1319), "math500": (MATH500DataModule, 500), "aime24": (AIME24DataModule, 30)}
    for name, (module, count) in counts.items():
        data = ready(module(tokenizer=path, root=real_data / name), "test")
        (loader,) = data.test_dataloader()
        assert indices(loader) == list(range(count))
        for gold in (gold for batch in loader for gold in batch["gold"]):
            assert data.kind == "math" or grade(f"\\boxed{{{gold}}}", gold, data.kind).strict
    data = ready(GSM8KDataModule(tokenizer=path, root=real_data / "gsm8k", val_fraction=0.1, max_length=4096))
    (train,), (val,) = data.sets["train"], data.sets["val"]
    assert (len(train), len(train.index), len(val.index)) == (7473, 6726, 747)
    batch = next(iter(data.train_dataloader()))
    text = AutoTokenizer.from_pretrained(path).decode(batch["input_ids"][0][batch["attention_mask"][0].bool()])
    assert text.startswith(f"<system>{TUTOR}<end><user>") and text.endswith("}<end>") and "<<" not in text


def test_command_line(path: str) -> None:
    """The arguments of all bases are seen."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(TextDataModule, "data")
    for name, words in {
        "GSM8KDataModule": {"root": "here", "predict_on": "train", "limit": 3, "val_fraction": 0.1},
        "AIME24DataModule": {"system_prompt": None, "eval_batch_size": 4},
        "ArithmeticDataModule": {"levels": [2, 4], "hint_fraction": 0.5, "samples": 7, "system_prompt": "Solve."},
    }.items():
        given = [f"--data.{key}={'null' if value is None else value}" for key, value in words.items()]
        config = parser.parse_args([f"--data={name}", f"--data.tokenizer={path}", "--data.batch_size=7", *given])
        data = parser.instantiate_classes(config).data
        assert type(data).__name__ == name and (data.batch_size, data.tokenizer_path) == (7, path)
        assert all(data.hparams[key] == value for key, value in words.items())


# Over ranks, in the trainer


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_answer_each_question_once(world: int, ranks: Ranks, path: str, tmp_path: Path) -> None:
    data = ready(GSM8KDataModule(tokenizer=path, root=gsm8k(tmp_path, test=7), eval_batch_size=2), "test", "predict")
    for (loader,) in (data.test_dataloader(), data.predict_dataloader()):
        seen, batches = [], set()
        for rank in range(world):
            ranks(rank, world)
            seen += questions(loader)
            batches.add(len(loader))
        assert sorted(seen) == [f"test {i}?" for i in range(7)] and len(batches) == 1


def test_ranks_train_on_the_batches_of_one(ranks: Ranks, path: str) -> None:
    data = ready(ArithmeticDataModule(tokenizer=path, samples=64, batch_size=8))
    whole = [batch["index"] for batch in data.train_dataloader()]
    data.batch_size = 4
    parts = []
    for rank in range(2):
        ranks(rank, 2)
        parts.append([batch["index"] for batch in data.train_dataloader()])
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(batch, torch.stack(shares, 1).flatten())


@pytest.mark.parametrize(("stop_at", "num_workers"), [(2, 0), (5, 2)])
def test_a_resumed_run_equals_a_straight_one(stop_at: int, num_workers: int, path: str, tmp_path: Path) -> None:
    def build() -> ArithmeticDataModule:
        settings: dict[str, Any] = {"samples": 15, "batch_size": 4, "hint_fraction": 0.5, "num_workers": num_workers}
        return ArithmeticDataModule(tokenizer=path, **settings)

    straight, first, rest = straight_and_resumed(build, tmp_path, stop_at, max_epochs=2)
    assert len(straight.seen) == 8 and len(first.seen) == stop_at
    assert first.seen + rest.seen == straight.seen
    assert torch.equal(rest.weight, straight.weight)


class Answerer(LightningModule):
    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("test/length", float(len(batch["question"])), batch_size=len(batch["question"]))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        return batch["gold"]


def test_every_stage(path: str, tmp_path: Path) -> None:
    data = GSM8KDataModule(tokenizer=path, root=gsm8k(tmp_path), val_fraction=0.2, eval_batch_size=2)
    trainer, module = quiet_trainer(max_epochs=1, num_sanity_val_steps=0), Recorder()
    trainer.fit(module, data)
    assert sorted(i for index, _ in module.evaluated[0] for i in index) == data.sets["val"][0].index.tolist()
    trainer.test(Answerer(), data, verbose=False)
    assert trainer.predict(Answerer(), data) == [["0", "1"], ["2", "3"], ["4"]]


def test_checkpoints_hold_plain_arguments(path: str, tmp_path: Path) -> None:
    trainer = quiet_trainer(max_epochs=1, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(Recorder(), ArithmeticDataModule(tokenizer=path, samples=40, levels=(1, 2), system_prompt="Solve."))
    loaded = ArithmeticDataModule.load_from_checkpoint(trainer.checkpoint_callback.best_model_path, weights_only=True)  # type: ignore[union-attr]
    assert (loaded.levels, loaded.system_prompt, loaded.kind) == ([1, 2], "Solve.", "number")
    saved = pickle.loads(pickle.dumps(ready(GSM8KDataModule(tokenizer=path, root=gsm8k(tmp_path)), "test")))
    assert questions(saved.test_dataloader()[0])[0] == "test 0?" and saved.root == str(tmp_path)


# Arithmetic


def test_hint_chats_are_a_share(path: str) -> None:
    data = ready(ArithmeticDataModule(tokenizer=path, samples=400, hint_fraction=0.25, batch_size=1, seed=3))
    own = AutoTokenizer.from_pretrained(path)
    hinted = 0
    for batch in data.train_dataloader():
        index, completion = int(batch["index"]), batch["completion_mask"][0]
        problem = make_arithmetic(3, "train", index, [1, 2, 3]).problem()
        assert own.decode(batch["input_ids"][0][completion]) == f"{problem.solution}<end>"
        prompt = own.decode(batch["input_ids"][0][~completion]).removeprefix("<user>").removesuffix("<end><assistant>")
        if "Right" not in prompt:
            assert prompt == problem.question
            continue
        hinted += 1
        question, _, rest = prompt.partition("\nRight:\n")
        right, _, wrong = rest.partition("\nWrong:\n")
        assert (question, right) == (problem.question, problem.solution)
        assert not grade(wrong, problem.gold, "number").strict
    assert 70 < hinted < 130


def test_seeds_and_parts(path: str) -> None:
    def first(part: str, **settings: Any) -> list[str]:
        data = ArithmeticDataModule(tokenizer=path, samples=30, test_samples=20, predict_on=part, **settings)  # type: ignore[arg-type]
        return questions(ready(data, "predict").predict_dataloader()[0])

    assert first("train") == first("train", hint_fraction=0.5) != first("train", seed=1)
    assert len(first("train")) == 30 and len(first("test")) == 20
    assert not set(first("train")) & set(first("test"))


# What goes wrong


def no_template(folder: Path, path: str) -> str:
    own = AutoTokenizer.from_pretrained(path)
    own.chat_template = None
    own.save_pretrained(folder / "plain")
    return str(folder / "plain")


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda f, t: MATH500DataModule(tokenizer=t).setup("fit"),
            "MATH500DataModule has no training set: fit to another one, such as GSM8KDataModule, and test on this one",
        ),
        (lambda f, t: AIME24DataModule(tokenizer=t).setup("validate"), "AIME24DataModule has no training set"),
        (lambda f, t: AIME24DataModule(tokenizer=t, predict_on="train"), "AIME24DataModule has no training set"),
        (
            lambda f, t: GSM8KDataModule(tokenizer=t, root=gsm8k(f), max_length=3).setup("fit"),
            "None of the training rows has a solution and at most max_length=3 tokens: raise it",
        ),
        (
            lambda f, t: GSM8KDataModule(tokenizer=no_template(f, t), root=gsm8k(f)).setup("fit"),
            "has no chat template: give prompts as plain text, or set its chat_template",
        ),
        (
            lambda f, t: GSM8KDataModule(tokenizer=t, root=gsm8k(f, change=lambda i, r: {} if i == 4 else r)).setup(
                "fit"
            ),
            "train.jsonl, line 5, is no problem: 'answer' must be a text, got None; the columns are none",
        ),
        (lambda f, t: GSM8KDataModule(tokenizer=str(f / "no"), root=gsm8k(f)).setup("fit"), "no' cannot be loaded"),
        (lambda f, t: ArithmeticDataModule(tokenizer=t, levels=[0, 1]), r"levels=\[0, 1\] must be some of 1, 2, 3, 4"),
        (lambda f, t: ArithmeticDataModule(tokenizer=t, levels=[]), r"levels=\[\] must be some of 1, 2, 3, 4, 5"),
        (lambda f, t: ArithmeticDataModule(tokenizer=t, hint_template="{problem}"), "has no place {right}"),
    ],
)
def test_bad_input_says_so(build: Any, sentence: str, path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(tmp_path, path)


def test_missing_files(path: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train.jsonl does not exist: give a file with one problem"):
        GSM8KDataModule(tokenizer=path, root=tmp_path).setup("fit")


def test_loaders_before_setup(path: str) -> None:
    with pytest.raises(RuntimeError, match=r"The test set is not there yet: call setup\('test'\)"):
        MATH500DataModule(tokenizer=path).test_dataloader()


def test_the_base_is_for_other_problems(path: str) -> None:
    """Own problems take one method."""
    from lit_kd.language.problems import Problem

    class Own(ProblemDataModule):
        kind = "number"

        def problems(self, part: str) -> list[Problem]:
            return [Problem(f"{part}?", "\\boxed{1}", "1")] * 4

    batch = next(iter(ready(Own(tokenizer=path, batch_size=4)).train_dataloader()))
    assert batch["completion_mask"].sum(1).tolist() == [len(encode_completion(AutoTokenizer.from_pretrained(path), "\\boxed{1}"))] * 4  # fmt: skip  # noqa: E501

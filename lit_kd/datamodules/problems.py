"""Mathematical problems: chats to train on, and questions to generate answers to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_kd.checks import check_choice, check_whole_or_none
from lit_kd.datamodules.loading import Batch, ResumableLoader, ShardSampler
from lit_kd.datamodules.text import Split, TextDataModule, TextSet
from lit_kd.language.answers import Kind
from lit_kd.language.chat import Example, Prompt, collate, encode_completion, encode_prompt, lm_tokenizer
from lit_kd.language.hints import TUTOR, question_prompt
from lit_kd.language.problems import Problem, aime_problem, gsm8k_problem, math500_problem, read_problems
from lit_kd.language.tokens import TokenRows, flat_rows

Part = Literal["train", "test"]


class ChatSet(TextSet):
    """Prompts with completions, padded on the right to the longest of the batch."""

    def __init__(self, rows: TokenRows, prompts: Tensor, pad: int, multiple: int, index: Tensor) -> None:
        """Keep rows of both, tokens of each prompt, int64 (N,), how to pad, and which rows are used."""
        super().__init__(rows.lengths(), index)
        self.rows, self.prompts, self.pad, self.multiple = rows, prompts, pad, multiple

    def __getitem__(self, key: Batch) -> Batch:
        """Return what `collate` makes of the rows, and `index`."""
        examples = []
        for position in key["index"].tolist():
            ids, prompt = self.rows.row(position)[0].tolist(), int(self.prompts[position])
            examples.append(Example(ids[:prompt], ids[prompt:]))
        batch = collate(examples, self.pad)
        missing = -batch["input_ids"].shape[1] % self.multiple
        fill = {"input_ids": self.pad}
        padded = {name: F.pad(values, (0, missing), value=fill.get(name, 0)) for name, values in batch.items()}
        return {**padded, "index": key["index"]}


class ColumnSet(TextSet):
    """Rows of plain values, such as prompts to complete."""

    def __init__(self, columns: Mapping[str, Sequence[Any]], numbers: Tensor) -> None:
        """Keep the columns, and the number of each row, int64 (N,), which its batches have as `index`."""
        super().__init__(torch.zeros_like(numbers))
        self.columns, self.numbers = columns, numbers

    def __getitem__(self, key: Batch) -> dict[str, Any]:
        """Return a list for each column, and `index`."""
        positions = key["index"].tolist()
        rows = {name: [values[position] for position in positions] for name, values in self.columns.items()}
        return {**rows, "index": self.numbers[key["index"]]}


def chat_set(examples: Sequence[Example | None], pad: int, max_length: int, multiple: int = 1) -> ChatSet:
    """Rows that fit; longer ones, those without a completion and those that are None are left out with a warning."""
    fits = [one is not None and bool(one.completion) and _length(one) <= max_length for one in examples]
    if not all(fits):
        rank_zero_warn(
            f"{fits.count(False)} of {len(fits)} training rows have no solution or over max_length={max_length} tokens "
            "and are left out."
        )
    used = [one if one is not None and fit else Example([], []) for one, fit in zip(examples, fits, strict=True)]
    rows = flat_rows([one.prompt + one.completion for one in used])
    prompts = torch.tensor([len(one.prompt) for one in used])
    return ChatSet(rows, prompts, pad, multiple, torch.tensor(fits).nonzero()[:, 0])


def _length(example: Example) -> int:
    return len(example.prompt) + len(example.completion)


class CompletionDataModule(TextDataModule):
    """Texts that end with a completion: chats to train on, validated on those that are held out, or not at all."""

    read_tokenizer = staticmethod(lm_tokenizer)
    validates_on_test = False

    def load_train(self) -> tuple[TextSet, TextSet]:
        """The rows to train on, and those held out; a ValueError if none is left."""
        train, val = super().load_train()
        if not len(train.index):
            raise ValueError(
                f"None of the training rows has a solution and at most max_length={self.max_length} tokens: raise it, "
                "or give problems with solutions."
            )
        return train, val


class ProblemDataModule(CompletionDataModule):
    """Problems with answers.

    Training and validation batches are chats: `input_ids` and `attention_mask` int64 (B, T), `completion_mask` bool
    (B, T), True where the solution is with the token that ends it, padded on the right, and `index`. Rows without a
    solution or longer than `max_length` are left out, with a warning that counts them: a question is never cut.
    Validation is what `val_fraction` holds out of the training problems, or nothing.

    Test and prediction batches are for generation: lists `question`, `gold` and `prompt` (the chat that asks), and
    `index` int64 (B,), in the order of the files; each problem comes once over all ranks. Both have the test problems,
    or prediction those that are trained on.

    Subclasses set `kind` and implement `problems`.

    Attributes:
        kind: How answers are compared: as a "number", in "math" notation, or as an "integer" from 0 to 999.
        system_prompt: The system message of every chat.
    """

    kind: Kind

    def __init__(
        self,
        *,
        tokenizer: str,
        system_prompt: str | None = TUTOR,
        predict_on: Part = "test",
        limit: int | None = None,
        max_length: int = 1024,
        **settings: Any,
    ) -> None:
        """Check and keep the arguments.

        Args:
            tokenizer: Folder, hub name or .gguf file of a model whose fast tokenizer it is, with a chat template.
            system_prompt: The system message of every chat; None: without one.
            predict_on: "train" predicts the problems that are trained on, held-out ones left out.
            limit: Test and predict the first ones only.
            max_length: Tokens of a training row, prompt and solution together.
            **settings: Arguments of `TextDataModule`.

        Raises:
            ValueError: As `TextDataModule`; an argument is out of range; in `setup`, no row is left to train on, or
                the tokenizer has no chat template.
        """
        super().__init__(tokenizer=tokenizer, max_length=max_length, **settings)
        check_choice(("train", "test"), predict_on=predict_on)
        check_whole_or_none(limit=limit)
        self.system_prompt = system_prompt
        self.predict_on = predict_on
        self.limit = limit

    @abstractmethod
    def problems(self, part: Part) -> Sequence[Problem]:
        """All problems of a part."""

    def chat(self, index: int, problem: Problem) -> tuple[Prompt, str | None]:
        """Prompt and completion of the training row `index`; None: it has none."""
        return question_prompt(problem.question, self.system_prompt), problem.solution

    def load(self, split: Split) -> list[TextSet]:
        """Tokenise the chats of "train", or read the questions of "test" and "predict"."""
        if split == "train":
            return [self._chats(self.problems("train"))]
        part: Part = self.predict_on if split == "predict" else "test"
        problems = self.problems(part)
        every = torch.zeros(len(problems), dtype=torch.int64)
        index = self.choose(every)[0] if part == "train" else torch.arange(len(problems))
        index = index[: self.limit]
        chosen = [problems[i] for i in index.tolist()]
        columns = {
            "question": [problem.question for problem in chosen],
            "gold": [problem.gold for problem in chosen],
            "prompt": [question_prompt(problem.question, self.system_prompt) for problem in chosen],
        }
        return [ColumnSet(columns, index)]

    def _chats(self, problems: Sequence[Problem]) -> ChatSet:
        tokenizer = self.tokenizer()

        def example(number: int, problem: Problem) -> Example | None:
            prompt, completion = self.chat(number, problem)
            if completion is None:
                return None
            return Example(encode_prompt(tokenizer, prompt), encode_completion(tokenizer, completion))

        examples = [example(number, problem) for number, problem in enumerate(problems)]
        return chat_set(examples, tokenizer.pad_token_id, self.max_length, self.pad_to_multiple_of or 1)

    def test_dataloader(self) -> list[ResumableLoader]:
        """Each question once, on one device in the order of the files."""
        return [self._loader(t, ShardSampler(t.index, self.eval_batch_size)) for t in self._sets("test")]


class _PublishedProblems(ProblemDataModule):
    """From `root`, a folder of JSONL files, or from `datasets`."""

    hub: ClassVar[tuple[str, ...]]  # name and configuration
    splits: ClassVar[dict[str, str]]  # as the hub names the parts that there are

    def __init__(self, *, tokenizer: str, root: str | Path | None = None, **settings: Any) -> None:
        """Check the arguments; files are read in `setup`.

        Args:
            tokenizer: Folder, hub name or .gguf file of a model whose fast tokenizer it is, with a chat template.
            root: Folder of `test.jsonl` and, where the set has one, `train.jsonl`; None: by `datasets`.
            **settings: Arguments of `ProblemDataModule`.

        Raises:
            ValueError: As `ProblemDataModule`; there is no training set to fit to or to predict; in `setup`, a line of
                a file is no problem.
            FileNotFoundError: In `setup`, a file is missing.
        """
        root = None if root is None else str(root)  # a plain string in the checkpoint: weights_only refuses paths
        super().__init__(tokenizer=tokenizer, **settings)
        if self.predict_on == "train":
            self._see("train")
        self.root = root

    @abstractmethod
    def parse(self, row: Mapping[str, Any]) -> Problem:
        """Read a row of the hub's, or a line of the file."""

    def problems(self, part: Part) -> list[Problem]:
        """Read a part."""
        self._see(part)
        if self.root is not None:
            return read_problems(Path(self.root) / f"{part}.jsonl", self.parse)
        from datasets import load_dataset

        return [self.parse(row) for row in load_dataset(*self.hub, split=self.splits[part])]

    def _see(self, part: Part) -> None:
        if part not in self.splits:
            raise ValueError(
                f"{type(self).__name__} has no training set: fit to another one, such as GSM8KDataModule, and test on "
                "this one."
            )


class GSM8KDataModule(_PublishedProblems):
    """GSM8K (arXiv:2110.14168): 7473 problems of grade school to train on and 1319 to test, answers are numbers."""

    kind = "number"
    hub = ("openai/gsm8k", "main")
    splits: ClassVar = {"train": "train", "test": "test"}

    def parse(self, row: Mapping[str, Any]) -> Problem:
        """Read a row."""
        return gsm8k_problem(row)


class MATH500DataModule(_PublishedProblems):
    """The 500 problems of MATH (arXiv:2103.03874) that arXiv:2305.20050 tests on, answers in LaTeX."""

    kind = "math"
    hub = ("HuggingFaceH4/MATH-500",)
    splits: ClassVar = {"test": "test"}

    def parse(self, row: Mapping[str, Any]) -> Problem:
        """Read a row."""
        return math500_problem(row)


class AIME24DataModule(_PublishedProblems):
    """The 30 problems of both AIME of 2024, answers are integers from 0 to 999: average over samples, not one run."""

    kind = "integer"
    hub = ("Maxwell-Jia/AIME_2024",)
    splits: ClassVar = {"test": "train"}

    def parse(self, row: Mapping[str, Any]) -> Problem:
        """Read a row."""
        return aime_problem(row)

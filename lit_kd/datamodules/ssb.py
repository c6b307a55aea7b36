"""What the stages of semantic soft bootstrapping hand on to each other, as data (arXiv:2512.05105)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import eq
from typing import Any, ClassVar, Literal

import torch

from lit_kd.checks import check_choice
from lit_kd.datamodules.loading import Batch
from lit_kd.datamodules.problems import ChatSet, ColumnSet, CompletionDataModule, chat_set
from lit_kd.datamodules.text import Split, TextSet
from lit_kd.language.answers import Kind, answers_match
from lit_kd.language.chat import Example, Prompt, encode_prompt
from lit_kd.language.hints import TUTOR, hint_prompt
from lit_kd.language.records import Row, read_manifest, read_records
from lit_kd.language.selection import select_rollouts
from lit_kd.language.teacher_files import missing_logprobs, read_logprobs


class StageDataModule(CompletionDataModule):
    """What a stage before has written into a folder; abstract.

    Attributes:
        source_name: Of the argument that says where the folder is.
        folder: Its value.
    """

    source_name: ClassVar[str]
    folder: str

    @property
    def kind(self) -> Kind:
        """Of the answers."""
        return read_manifest(self.folder)["kind"]

    def describe(self) -> dict[str, Any]:
        """What decides on the texts: the manifest of the stage before is part of it."""
        return {**super().describe(), self.source_name: read_manifest(self.folder)}


class HintsDataModule(StageDataModule):
    """Problems that a model answered both right and wrong, with an answer of each kind in the prompt; for ``predict``.

    The right answer is the first one, the wrong one the first with the most frequent wrong result, see
    :func:`lit_kd.language.selection.select_rollouts`; an answer without an extracted result is neither. Batches hold
    lists: ``question``, ``gold``, ``prompt`` (the chat with the hints), ``student_prompt`` (without), ``right`` and
    ``wrong`` (numbers of the two answers), and ``index`` int64 (B,) of the problem.
    """

    source_name = "rollouts"

    def __init__(
        self,
        *,
        rollouts: str,
        match: Literal["equal", "exact"] = "equal",
        official: bool = False,
        system_prompt: str | None = TUTOR,
        template: str | None = None,
        seed: int = 0,
        eval_batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        """Check and keep the arguments; rollouts are read in `setup`.

        Args:
            rollouts: Folder of :class:`lit_kd.methods.Rollouts`.
            match: How results are compared: "equal" as numbers or expressions, "exact" letter by letter, as published.
            official: The published prompt's structure, see :func:`lit_kd.language.hints.hint_prompt`.
            system_prompt: Of the prompt with hints.
            template: Other words for it.
            seed: Of the choice where all wrong results differ.
            eval_batch_size: Problems a step and device.
            num_workers: Loader processes.

        Raises:
            ValueError: An argument is out of range; in `setup`, no problem was answered both right and wrong.
            FileNotFoundError: In `setup`, there are no rollouts.
        """
        super().__init__(tokenizer="", seed=seed, eval_batch_size=eval_batch_size, num_workers=num_workers)
        check_choice(("equal", "exact"), match=match)
        self.folder, self.match = rollouts, match
        self.words: dict[str, Any] = {"official": official, "system": system_prompt, "template": template}

    def load(self, split: Split) -> list[TextSet]:
        """Choose two answers of each problem."""
        if split != "predict":
            raise ValueError(f"HintsDataModule has prompts to predict with, and nothing for {split}.")
        rows = read_records(self.folder)
        match = eq if self.match == "exact" else partial(answers_match, kind=self.kind)
        chosen = [(row, pair) for row in rows if (pair := self.choose_answers(row, match)) is not None]
        if not chosen:
            right = sum(any(answer["right"] for answer in row["answers"]) for row in rows)
            raise ValueError(
                f"None of the {len(rows)} problems in {self.folder} was answered both right and wrong ({right} were "
                "answered right at least once): draw more answers, or take problems of another difficulty."
            )
        columns = {
            "question": [row["question"] for row, _ in chosen],
            "gold": [row["gold"] for row, _ in chosen],
            "prompt": [self.prompt(row, *pair) for row, pair in chosen],
            "student_prompt": [row["prompt"] for row, _ in chosen],
            "right": [right for _, (right, _) in chosen],
            "wrong": [wrong for _, (_, wrong) in chosen],
        }
        return [ColumnSet(columns, torch.tensor([row["index"] for row, _ in chosen]))]

    def choose_answers(self, row: Row, match: Callable[[str, str], bool]) -> tuple[int, int] | None:
        """Numbers of a right and a wrong answer; None unless there are both. What was cut counts as published only."""
        published = self.match == "exact"
        answers = [one["answer"] if published or one["finish_reason"] == "stop" else None for one in row["answers"]]
        return select_rollouts(answers, row["gold"], match, self.seed + row["index"])

    def prompt(self, row: Row, right: int, wrong: int) -> Prompt:
        """The chat with the hints."""
        texts = [row["answers"][number]["text"] for number in (right, wrong)]
        return hint_prompt(row["question"], *texts, **self.words)


class SSBDataModule(StageDataModule):
    """Accepted solutions behind two prompts: the problem alone for the student, with hints for the teacher.

    Batches hold what :func:`lit_kd.language.chat.collate` gives for the student (``input_ids``, ``attention_mask``,
    ``completion_mask``), the same for the teacher with ``teacher_`` before the names, and ``index`` int64 (B,) of the
    problem. The completion is one and the same: the ids that were drawn. With ``teacher_logits`` also
    ``teacher_logprobs`` and ``teacher_indices``, (N, k), of the batch's N completion tokens, row by row. Validation is
    what ``val_fraction`` holds out, or nothing.
    """

    source_name = "refined"

    def __init__(
        self,
        *,
        refined: str,
        tokenizer: str,
        student_prompt: Literal["chat", "flat"] = "chat",
        include_eos: bool = True,
        teacher_logits: str | None = None,
        max_length: int = 2048,
        **settings: Any,
    ) -> None:
        """Check and keep the arguments; files are read in `setup`.

        Args:
            refined: Folder of :class:`lit_kd.methods.Refinement`.
            tokenizer: Of the model that wrote the solutions.
            student_prompt: "flat" joins the messages by a space, without a template, as published.
            include_eos: Whether the end token is learnt; it is not in the published code.
            teacher_logits: Folder of :class:`lit_kd.methods.TeacherLogits`.
            max_length: Longer rows, prompt and solution together, are left out with a warning.
            **settings: Arguments of `TextDataModule`.

        Raises:
            ValueError: As `TextDataModule`; in `setup`, no solution was accepted or fits, or teacher logits are of
                other solutions or incomplete.
            FileNotFoundError: In `setup`, there is no such folder.
        """
        super().__init__(tokenizer=tokenizer, max_length=max_length, **settings)
        check_choice(("chat", "flat"), student_prompt=student_prompt)
        self.folder, self.teacher_logits = refined, teacher_logits
        self.student_prompt, self.include_eos = student_prompt, include_eos
        self.teacher_temperature: float | None = None  # of the logits, once they are read

    def load(self, split: Split) -> list[TextSet]:
        """All accepted solutions."""
        rows = read_records(self.folder)
        accepted = [row for row in rows if row["reason"] is None]
        if not accepted:
            raise ValueError(f"None of the {len(rows)} solutions in {self.folder} was accepted: see their `reason`.")
        tokenizer = self.tokenizer()
        completions = [row["ids"] if self.include_eos else row["ids"][:-1] for row in accepted]
        prompts = [self.of_student(row["student_prompt"]) for row in accepted]
        student, teacher = (
            chat_set(
                [Example(encode_prompt(tokenizer, p), c) for p, c in zip(sides, completions, strict=True)],
                tokenizer.pad_token_id,
                self.max_length,
            )
            for sides in (prompts, [row["prompt"] for row in accepted])
        )
        numbers = [row["index"] for row in accepted]
        pairs = PairSet(student, teacher, torch.tensor(numbers), self.teacher_logits if split != "predict" else None)
        if self.teacher_logits is not None and split != "predict":
            self.read_manifest_of_logits([numbers[i] for i in pairs.index.tolist()])
        return [pairs]

    def of_student(self, prompt: Prompt) -> Prompt:
        """The prompt that the student sees."""
        if self.student_prompt == "chat" or not isinstance(prompt, list):
            return prompt
        return " ".join(message["content"] for message in prompt)

    def read_manifest_of_logits(self, numbers: Sequence[int]) -> None:
        """See that the teacher's files are of these solutions, and all there."""
        assert self.teacher_logits is not None
        manifest, own = read_manifest(self.teacher_logits), self.describe()
        for name in ("refined", "include_eos"):
            if manifest["data"][name] != own[name]:
                raise ValueError(
                    f"{self.teacher_logits} was written for solutions of another {name}: run TeacherLogits on these."
                )
        absent = missing_logprobs(self.teacher_logits, numbers)
        if absent:
            raise ValueError(
                f"{self.teacher_logits} lacks {len(absent)} of {len(numbers)} solutions, the first is {absent[0]}: run "
                "TeacherLogits again, it goes on where it stopped."
            )
        self.teacher_temperature = manifest["temperature"]


class PairSet(TextSet):
    """The same completions behind the prompts of student and teacher."""

    def __init__(self, student: ChatSet, teacher: ChatSet, numbers: torch.Tensor, logits: str | None) -> None:
        """Keep rows of both, the number of each problem, int64 (N,), and the folder of the teacher's files."""
        fits = torch.isin(student.index, teacher.index)
        super().__init__(student.lengths + teacher.lengths, student.index[fits])
        self.student, self.teacher, self.numbers, self.logits = student, teacher, numbers, logits

    def __getitem__(self, key: Batch) -> Batch:
        """Return both sides, `index` and, from the files, the teacher's distributions."""
        theirs = {f"teacher_{name}": value for name, value in self.teacher[key].items() if name != "index"}
        numbers = self.numbers[key["index"]]
        batch = {**self.student[key], **theirs, "index": numbers}
        if self.logits is not None:
            logprobs, indices = read_logprobs(self.logits, numbers.tolist())
            batch |= {"teacher_logprobs": logprobs, "teacher_indices": indices}
        return batch


class RightAnswersDataModule(StageDataModule):
    """The answers in rollouts that were right and ended by themselves, to fine-tune on: the baseline of SSB.

    Batches are those of :class:`SSBDataModule` without a teacher; ``index`` is the position of the answer.
    """

    source_name = "rollouts"

    def __init__(self, *, rollouts: str, tokenizer: str, max_length: int = 2048, **settings: Any) -> None:
        """Check and keep the arguments; rollouts are read in `setup`.

        Args:
            rollouts: Folder of :class:`lit_kd.methods.Rollouts`.
            tokenizer: Of the model that wrote them.
            max_length: Longer rows, prompt and answer together, are left out with a warning.
            **settings: Arguments of `TextDataModule`.

        Raises:
            ValueError: As `TextDataModule`; in `setup`, no answer is right, or fits.
            FileNotFoundError: In `setup`, there are no rollouts.
        """
        super().__init__(tokenizer=tokenizer, max_length=max_length, **settings)
        self.folder = rollouts

    def load(self, split: Split) -> list[TextSet]:
        """All right answers."""
        tokenizer = self.tokenizer()
        rows = read_records(self.folder)
        right = [
            Example(encode_prompt(tokenizer, row["prompt"]), answer["ids"])
            for row in rows
            for answer in row["answers"]
            if answer["right"] and answer["finish_reason"] == "stop"
        ]
        if not right:
            raise ValueError(f"None of the answers to the {len(rows)} problems in {self.folder} is right.")
        return [chat_set(right, tokenizer.pad_token_id, self.max_length)]

"""Generated word problems, which small networks can learn on a CPU."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from lit_kd.checks import check_list, check_share, check_whole
from lit_kd.datamodules.problems import Part, ProblemDataModule
from lit_kd.language.arithmetic import LARGEST, make_arithmetic
from lit_kd.language.chat import Prompt
from lit_kd.language.hints import COMPACT_HINTS, check_template, hint_prompt
from lit_kd.language.problems import Problem


class ArithmeticDataModule(ProblemDataModule):
    """Word problems in GSM8K's form, made from `seed`; see `lit_kd.language.arithmetic`.

    Another seed gives other problems, those of the test too; training and test never have one in common. A share of the
    training rows may be hint chats: the prompt shows the right solution and one with a slip, the completion is the
    right one. So a network that is trained on nothing else can play the teacher of SSB.
    `lit_kd.language.arithmetic.train_tokenizer` makes a tokenizer.
    """

    kind = "number"

    def __init__(
        self,
        *,
        tokenizer: str,
        samples: int = 20000,
        test_samples: int = 500,
        levels: Sequence[int] = (1, 2, 3),
        hint_fraction: float = 0.0,
        hint_template: str = COMPACT_HINTS,
        system_prompt: str | None = None,
        max_length: int = 512,
        **settings: Any,
    ) -> None:
        """Check the arguments; problems are made in `setup`.

        Args:
            tokenizer: Folder, hub name or .gguf file of a model whose fast tokenizer it is, with a chat template.
            samples: Training problems, those held out for validation included.
            test_samples: Test problems.
            levels: Numbers of equations that problems take, each from 1 to 5; numbers grow with them.
            hint_fraction: Share of the training rows that are hint chats, in [0, 1].
            hint_template: Their words, as for `hint_prompt`.
            system_prompt: The system message of every chat; None: without one.
            max_length: Tokens of a training row, prompt and solution together.
            **settings: Arguments of `ProblemDataModule`.

        Raises:
            ValueError: As `ProblemDataModule`; an argument is out of range; the template lacks a place.
        """
        check_list(levels=levels)
        levels = list(levels)  # plain in the checkpoint
        super().__init__(tokenizer=tokenizer, system_prompt=system_prompt, max_length=max_length, **settings)
        check_whole(samples=samples, test_samples=test_samples)
        if not levels or not set(levels) <= set(LARGEST):
            raise ValueError(f"levels={levels} must be some of {', '.join(map(str, LARGEST))}.")
        check_share(hint_fraction=hint_fraction)
        check_template(hint_template)
        self.samples = {"train": samples, "test": test_samples}
        self.levels = levels
        self.hint_fraction = hint_fraction
        self.hint_template = hint_template

    def problems(self, part: Part) -> list[Problem]:
        """Make them."""
        return [make_arithmetic(self.seed, part, i, self.levels).problem() for i in range(self.samples[part])]

    def chat(self, index: int, problem: Problem) -> tuple[Prompt, str | None]:
        """The question, or a hint chat, and the solution."""
        draw = random.Random(f"{self.seed} chat {index}")
        if draw.random() >= self.hint_fraction or problem.solution is None:
            return super().chat(index, problem)
        wrong = make_arithmetic(self.seed, "train", index, self.levels).wrong(draw)
        words: dict[str, Any] = {"system": self.system_prompt, "template": self.hint_template}
        return hint_prompt(problem.question, problem.solution, wrong, **words), problem.solution

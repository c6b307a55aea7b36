r"""Word problems in GSM8K's form that are generated: small networks can learn them, and nothing is downloaded.

A problem tells what happens to a number, event after event; its solution has one equation a line and ends with the
answer in ``\boxed{}``. Its level, from 1 to 5, is the number of equations, and numbers grow with it. Everything is a
function of (seed, split, index). Training and test share no problem, whatever the seeds: the numbers and operations
that a problem consists of decide which of the two it may be in.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zlib import crc32

from lit_kd.files import filling
from lit_kd.language.chat import lm_tokenizer
from lit_kd.language.hints import COMPACT_HINTS, hint_prompt
from lit_kd.language.problems import Problem

LARGEST = {1: 10, 2: 10, 3: 20, 4: 50, 5: 100}  # level: largest number of a problem's text
TEST_SHARE = 10  # one of so many combinations of numbers and operations is for tests
_CALCULATE = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@dataclass(frozen=True)
class Event:
    """What happens to the number: it is increased ("+"), decreased ("-") or multiplied ("*") by `amount`.

    `packs`: so many times the amount comes or goes, which takes an equation more; 1: once.
    """

    sign: str
    amount: int
    packs: int = 1


@dataclass(frozen=True)
class Story:
    """Sentences around the numbers; in each, {n} is a number, {packs} the number of packs."""

    start: str
    more: tuple[str, ...]
    fewer: tuple[str, ...]
    packs_more: str
    packs_fewer: str
    times: str
    ask: str
    things: tuple[str, ...] = ("",)

    def sentences(self, event: Event) -> tuple[str, ...]:
        """Those that tell of an event."""
        if event.sign == "*":
            return (self.times,)
        if event.packs > 1:
            return (self.packs_more if event.sign == "+" else self.packs_fewer,)
        return self.more if event.sign == "+" else self.fewer


NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jon", "Kim", "Leo", "Mia", "Nils", "Olga")
STORIES = (
    Story(
        "{name} has {n} {things}.",
        ("{name} finds {n} more.", "A friend gives {name} {n} more."),
        ("{name} loses {n}.", "{name} gives away {n}."),
        "{name} buys {packs} bags of {n}.",
        "{name} gives {n} to each of {packs} friends.",
        "After a trade {name} has {n} times as many.",
        "How many {things} does {name} have now?",
        ("marbles", "stamps", "shells", "cards", "apples", "pencils", "beads", "stickers"),
    ),
    Story(
        "{name} has {n} dollars.",
        ("{name} earns {n} dollars.", "{name} finds {n} dollars."),
        ("{name} spends {n} dollars.", "{name} loses {n} dollars."),
        "{name} works {packs} hours for {n} dollars each.",
        "{name} buys {packs} tickets for {n} dollars each.",
        "A prize makes it {n} times as much.",
        "How many dollars does {name} have in the end?",
    ),
    Story(
        "A bus leaves with {n} passengers.",
        ("{n} get on.", "At the market {n} get on."),
        ("{n} get off.", "At the school {n} get off."),
        "At each of {packs} stops {n} get on.",
        "At each of {packs} stops {n} get off.",
        "At the station their number grows to {n} times as many.",
        "How many passengers are on the bus now?",
    ),
    Story(
        "A farm has {n} {things}.",
        ("{n} are born.", "The farmer buys {n} more."),
        ("{n} are sold.", "{n} run away."),
        "The farmer buys {packs} groups of {n}.",
        "Each of {packs} neighbours takes {n}.",
        "In good years their number grows to {n} times as many.",
        "How many {things} does the farm have now?",
        ("sheep", "hens", "goats", "cows", "ducks"),
    ),
    Story(
        "A library has {n} books.",
        ("{n} are added.", "{n} come back."),
        ("{n} are lent out.", "{n} are thrown away."),
        "{packs} boxes of {n} arrive.",
        "Each of {packs} readers borrows {n}.",
        "A gift makes it {n} times as many.",
        "How many books are in the library now?",
    ),
    Story(
        "{name} has baked {n} {things}.",
        ("{name} bakes {n} more.", "{n} more come out of the oven."),
        ("{name} sells {n}.", "{n} are burnt."),
        "{name} bakes {packs} trays of {n}.",
        "{name} sells {n} to each of {packs} guests.",
        "By noon there are {n} times as many.",
        "How many {things} are there now?",
        ("rolls", "pies", "buns", "cakes"),
    ),
)


@dataclass(frozen=True)
class Arithmetic:
    """A problem: its question, the number at the start, and what happens to it."""

    question: str
    start: int
    events: tuple[Event, ...]

    def work(self, slip: tuple[int, int] | None = None) -> tuple[list[str], list[int]]:
        """The equations and their results.

        Args:
            slip: Number of an equation whose result is wrong, and by how much; those after it go on with that.
        """
        lines: list[str] = []
        results: list[int] = []

        def equation(left: int, sign: str, right: int) -> int:
            result = _CALCULATE[sign](left, right)
            if slip is not None and slip[0] == len(lines):
                result += slip[1]
            lines.append(f"{left}{sign}{right}={result}")
            results.append(result)
            return result

        total = self.start
        for event in self.events:
            amount = event.amount if event.packs == 1 else equation(event.packs, "*", event.amount)
            total = equation(total, event.sign, amount)
        return lines, results

    def problem(self) -> Problem:
        """In the form of the published ones."""
        lines, results = self.work()
        return Problem(self.question, _solution(lines, results), str(results[-1]))

    def wrong(self, draw: random.Random) -> str:
        """A solution with one slip in a step, and so with a wrong answer."""
        step = draw.randrange(len(self.work()[0]))
        # At least one of 1 and -1 leaves no negative number; every operation carries the slip on to the answer.
        for error in draw.sample((1, -1, 2, -2, 10, -10), 6):
            lines, results = self.work((step, error))
            if min(results) >= 0:
                break
        return _solution(lines, results)


def make_arithmetic(seed: int, split: Literal["train", "test"], index: int, levels: Sequence[int]) -> Arithmetic:
    r"""Problem number `index` of a split, of one of the levels.

    Example:
        >>> made = make_arithmetic(seed=0, split="test", index=0, levels=[2])
        >>> made.question
        'Ida has 10 marbles. Ida buys 4 bags of 2. How many marbles does Ida have now?'
        >>> made.problem().solution
        '4*2=8\n10+8=18\n\\boxed{18}'
    """
    draw = random.Random(f"{seed} {split} {index}")
    level = draw.choice(list(levels))
    while True:
        start, events = _draw_events(draw, level)
        if (crc32(f"{start} {events}".encode()) % TEST_SHARE == 0) == (split == "test"):
            break
    story = draw.choice(STORIES)
    words = {"name": draw.choice(NAMES), "things": draw.choice(story.things)}
    told = [story.start.format(n=start, **words)]
    for event in events:
        told.append(draw.choice(story.sentences(event)).format(n=event.amount, packs=event.packs, **words))
    return Arithmetic(" ".join([*told, story.ask.format(**words)]), start, tuple(events))


def train_tokenizer(folder: str | Path, size: int = 1024, texts: Iterable[str] | None = None) -> str:
    """Train a byte-level BPE tokenizer whose digits are tokens of their own, and save it with a chat template.

    The folder then is what `AutoTokenizer` reads. Special tokens are `<pad>`, `<end>` (end of a turn and of the text)
    and one for each role.

    Args:
        folder: Where to save it; made if missing.
        size: Tokens at most, 256 bytes and special ones included.
        texts: To learn from; None: 5000 training problems of all levels, hints, and `TUTOR`.

    Returns:
        The folder.

    Raises:
        ValueError: The size has no room for all bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<end>", "<system>", "<user>", "<assistant>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if size < len(special) + len(alphabet):
        raise ValueError(f"size={size} must be at least {len(special) + len(alphabet)}: all bytes and special tokens.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(_texts() if texts is None else texts, trainer)
    trained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=special[2:],
        chat_template=(
            "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        ),
    )
    with filling(folder) as temporary:
        trained.save_pretrained(str(temporary))
    return str(folder)


def _texts() -> Iterable[str]:
    for index in range(5000):
        made = make_arithmetic(0, "train", index, tuple(LARGEST))
        right = made.problem().solution or ""
        wrong = made.wrong(random.Random(index))
        for message in hint_prompt(made.question, right, wrong, template=COMPACT_HINTS):
            yield message["content"]


def _draw_events(draw: random.Random, level: int) -> tuple[int, list[Event]]:
    """A start and events of `level` equations, whose numbers are never negative."""
    largest = LARGEST[level]
    total = start = draw.randint(2, largest)
    events: list[Event] = []
    left = level
    while left:
        # A product of packs takes an equation more; numbers stay below four times the largest of the text.
        sign = draw.choice("++--*") if total <= 2 * largest else "-"
        packs = draw.choice((1, draw.randint(2, 9))) if left > 1 and sign != "*" else 1
        most = {"+": largest // packs, "-": min(total, largest) // packs, "*": 3}[sign]
        if most < 2:
            continue
        event = Event(sign, draw.randint(2, most if packs == 1 else min(9, most)), packs)
        total = _CALCULATE[sign](total, event.packs * event.amount)
        events.append(event)
        left -= 1 + (packs > 1)
    return start, events


def _solution(lines: Sequence[str], results: Sequence[int]) -> str:
    return "\n".join([*lines, f"\\boxed{{{results[-1]}}}"])


def write_start(folder: str | Path, width: int = 128, layers: int = 4, heads: int = 4) -> str:
    """A tokenizer and the configuration of a small Llama, for ``causal_lm(folder, init="random")``; the folder."""
    from transformers import LlamaConfig

    tokenizer = lm_tokenizer(train_tokenizer(folder))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with filling(folder) as temporary:
        config.save_pretrained(temporary)
    return str(folder)


if __name__ == "__main__":  # python -m lit_kd.language.arithmetic FOLDER
    write_start(sys.argv[1])

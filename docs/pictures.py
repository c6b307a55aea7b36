"""Draw the pictures of the method pages: ``python docs/pictures.py`` writes docs/pictures/<method>.svg.

A picture is boxes and arrows on a light card, so that it reads on light and dark pages. What would be unreadable is an
error: a text that does not fit its box, boxes that overlap, a line through a box or a label.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["data", "trained", "frozen", "moving", "loss", "file"]
Side = Literal["left", "right", "top", "bottom"]
Point = tuple[float, float]

FILL: dict[Kind, tuple[str, str]] = {
    "data": ("#eceff1", "#607d8b"),
    "trained": ("#fff0d9", "#e07b00"),
    "frozen": ("#e1ecfb", "#2f6fc4"),
    "moving": ("#e6f4ea", "#2e8b57"),
    "loss": ("#fbe3e6", "#c2344a"),
    "file": ("#f1e8fa", "#7a4fb5"),
}
MEANING: dict[Kind, str] = {
    "data": "data, values",
    "trained": "trained",
    "frozen": "frozen",
    "moving": "moves along",
    "loss": "loss",
    "file": "file",
}
SIZE, LINE = 14, 18
CHARACTER = 0.56  # mean width of a character of DejaVu Sans, which is wider than Helvetica and Arial


def text_width(text: str, size: float = SIZE) -> float:
    """Pixels, an upper estimate."""
    return CHARACTER * size * len(text)


@dataclass(frozen=True)
class Area:
    """A rectangle that nothing else may touch."""

    x: float
    y: float
    width: float
    height: float
    name: str

    def at(self, side: Side, shift: float = 0) -> Point:
        """The middle of a side, moved along it."""
        if side in ("left", "right"):
            return self.x + (self.width if side == "right" else 0), self.y + self.height / 2 + shift
        return self.x + self.width / 2 + shift, self.y + (self.height if side == "bottom" else 0)

    def overlaps(self, x: float, y: float, width: float, height: float) -> bool:
        """Whether the inside of another rectangle lies in this one."""
        return x < self.x + self.width and self.x < x + width and y < self.y + self.height and self.y < y + height


@dataclass
class Picture:
    """SVG elements, and the areas that are taken."""

    name: str
    width: int
    height: int
    areas: list[Area] = field(default_factory=list)
    elements: list[str] = field(default_factory=list)
    kinds: set[Kind] = field(default_factory=set)

    def box(self, x: float, y: float, text: str, kind: Kind, width: float = 150) -> Area:
        """A box of several lines, as high as they need."""
        lines = text.split("\n")
        if max(map(text_width, lines)) > width - 12:
            raise ValueError(f"{self.name}: {text!r} needs more than {width} pixels.")
        area = self._take(x, y, width, len(lines) * LINE + 14, text)
        fill, stroke = FILL[kind]
        self.kinds.add(kind)
        shape = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{area.height:g}" rx="6"'
        self.elements.append(f'<rect {shape} fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>')
        for number, line in enumerate(lines):
            self._text(x + width / 2, y + 21 + number * LINE, line, "middle")
        return area

    def title(self, x: float, y: float, text: str) -> None:
        """Bold words above a part of the picture, y: their base line."""
        self._take(x, y - SIZE, text_width(text), SIZE + 4, text)
        self._text(x, y, text, "start", weight="bold")

    def arrow(self, *points: Point, label: str = "", dashed: bool = False, place: Point | None = None) -> None:
        """A line through the points with a head at its end; the label stands above the middle of its first segment."""
        for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
            width, height = max(abs(x1 - x0) - 2, 0.1), max(abs(y1 - y0) - 2, 0.1)
            self._check((min(x0, x1) + 1, min(y0, y1) + 1, width, height), f"the line {points}")
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        style = 'fill="none" stroke="#37474f" stroke-width="1.5"' + (' stroke-dasharray="5 4"' if dashed else "")
        self.elements.append(f'<polyline points="{path}" {style} marker-end="url(#head)"/>')
        if label:
            (x0, y0), (x1, y1) = points[:2]
            x, y = place or ((x0 + x1) / 2, (y0 + y1) / 2 - 6)
            self._take(x - text_width(label, 12) / 2, y - 11, text_width(label, 12), 13, label)
            self._text(x, y, label, "middle", size=12)

    def svg(self) -> str:
        """The whole file, with a legend of the kinds that occur."""
        x = 20.0
        for kind in [kind for kind in FILL if kind in self.kinds]:
            fill, stroke = FILL[kind]
            y = self.height - 26
            self._take(x, y, 22 + text_width(MEANING[kind], 12), 14, f"legend {kind}")
            self.elements.append(f'<rect x="{x:g}" y="{y}" width="14" height="14" fill="{fill}" stroke="{stroke}"/>')
            self._text(x + 20, y + 11, MEANING[kind], "start", size=12)
            x += 40 + text_width(MEANING[kind], 12)
        body = "\n".join(self.elements)
        return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" \
font-family="DejaVu Sans, Helvetica, Arial, sans-serif" fill="#212121">
<defs><marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" orient="auto">\
<path d="M0,0.5 L8,4 L0,7.5 z" fill="#37474f"/></marker></defs>
<rect width="{self.width}" height="{self.height}" rx="8" fill="#fdfdfd" stroke="#cfd8dc"/>
{body}
</svg>
"""

    def _take(self, x: float, y: float, width: float, height: float, name: str) -> Area:
        self._check((x, y, width, height), repr(name))
        if x < 4 or y < 4 or x + width > self.width - 4 or y + height > self.height - 4:
            raise ValueError(f"{self.name}: {name!r} leaves the picture.")
        self.areas.append(Area(x, y, width, height, name))
        return self.areas[-1]

    def _check(self, shape: tuple[float, float, float, float], what: str) -> None:
        for area in self.areas:
            if area.overlaps(*shape):
                raise ValueError(f"{self.name}: {what} touches {area.name!r}.")

    def _text(self, x: float, y: float, text: str, anchor: str, size: int = SIZE, weight: str = "normal") -> None:
        text = text.replace("&", "&amp;").replace("<", "&lt;")
        look = f'font-size="{size}" text-anchor="{anchor}"' + (' font-weight="bold"' if weight == "bold" else "")
        self.elements.append(f'<text x="{x:g}" y="{y:g}" {look}>{text}</text>')


def between_data_and_loss(p: Picture, *networks: Area) -> None:
    """Arrows from the row above into each network, and from each to the row below."""
    for box in networks:
        x = box.at("top")[0]
        p.arrow((x, 82), (x, 122))
        p.arrow((x, 154), (x, 194))


def mcmi() -> Picture:
    """A teacher, its fine-tuning, a student."""
    p = Picture("mcmi", 920, 300)
    p.title(20, 30, "1  Classifier")
    images = p.box(20, 50, "images, labels", "data", 160)
    network = p.box(20, 122, "network", "trained", 160)
    loss = p.box(20, 194, "CE(z, y)", "loss", 160)
    p.arrow(images.at("bottom"), network.at("top"))
    p.arrow(network.at("bottom"), loss.at("top"))

    p.title(240, 30, "2  MCMITeacher")
    images = p.box(240, 50, "images, labels", "data", 170)
    teacher = p.box(240, 122, "teacher", "trained", 170)
    means = p.box(240, 194, "its mean output Q_y\nof each class y", "frozen", 170)
    target = p.box(450, 194, "CE(z, y)\n- λ KL(P || Q_y)", "loss", 150)
    p.arrow(network.at("right"), teacher.at("left"), label="weights")
    p.arrow(images.at("bottom"), teacher.at("top"))
    p.arrow(teacher.at("bottom"), means.at("top"))
    p.arrow(means.at("right"), target.at("left"))
    p.arrow(teacher.at("right", 8), (525, 146), target.at("top"), label="P", place=(540, 172))

    p.title(650, 30, "3  MCMIDistill")
    images = p.box(650, 50, "images, all or few", "data", 250)
    frozen = p.box(650, 122, "teacher", "frozen", 115)
    student = p.box(785, 122, "student", "trained", 115)
    loss = p.box(650, 194, "an objective:\nKD, DKD, CRD, ...", "loss", 250)
    p.arrow(teacher.at("right", -6), frozen.at("left", -6), label="weights")
    between_data_and_loss(p, frozen, student)
    return p


def defensive() -> Picture:
    """Two trainings at T, and who attacks the result."""
    p = Picture("defensive", 920, 300)
    p.title(20, 30, "1  Classifier(temperature=T)")
    images = p.box(20, 50, "images, labels", "data", 180)
    teacher = p.box(20, 122, "teacher", "trained", 180)
    loss = p.box(20, 194, "CE(y, softmax(z / T))", "loss", 180)
    p.arrow(images.at("bottom"), teacher.at("top"))
    p.arrow(teacher.at("bottom"), loss.at("top"))

    p.title(270, 30, "2  DefensiveDistill(T)")
    p.box(270, 50, "images", "data", 230)
    frozen = p.box(270, 122, "teacher", "frozen", 105)
    student = p.box(395, 122, "student", "trained", 105)
    p.box(270, 194, "CE(softmax(z_teacher / T),\nsoftmax(z_student / T))", "loss", 230)
    p.arrow(teacher.at("right"), frozen.at("left"), label="weights")
    between_data_and_loss(p, frozen, student)

    p.title(560, 30, "3  used and attacked at T = 1")
    used = p.box(560, 122, "student", "frozen", 90)
    naive = p.box(700, 60, "naive: FGSM, PGD on CE;\nits gradient is 0,\nso it seems robust", "data", 200)
    honest = p.box(700, 158, "honest: z / T, margin,\ntransfer, C&W;\nit falls", "data", 200)
    p.arrow(student.at("right"), used.at("left"), label="weights")
    for box in (naive, honest):
        y = box.at("left")[1]
        p.arrow(used.at("right"), (675, 138), (675, y), (700, y))
    return p


def obow() -> Picture:
    """One step of one level."""
    p = Picture("obow", 920, 370)
    image = p.box(20, 60, "whole image", "data", 130)
    teacher = p.box(200, 60, "teacher", "moving", 120)
    codes = p.box(390, 51, "how near each\nplace is to words", "data", 155)
    bag = p.box(590, 51, "bag y: maximum\nover places", "data", 150)
    vocabulary = p.box(390, 151, "vocabulary V:\na queue of K words", "moving", 155)
    weights = p.box(590, 151, "word weights\nW = G(V)", "trained", 150)
    loss = p.box(780, 151, "KL(y ||\nsoftmax(z))", "loss", 120)
    crops = p.box(20, 260, "crops of it", "data", 130)
    student = p.box(200, 260, "student", "trained", 120)
    mean = p.box(390, 251, "f: mean over\nplaces", "data", 155)
    logits = p.box(590, 260, "z = κ f Wᵀ", "data", 150)
    for one, other in [(image, teacher), (teacher, codes), (codes, bag), (vocabulary, weights)]:
        p.arrow(one.at("right"), other.at("left"))
    for one, other in [(crops, student), (student, mean), (mean, logits)]:
        p.arrow(one.at("right"), other.at("left"))
    p.arrow(vocabulary.at("top"), codes.at("bottom"))
    p.arrow(weights.at("bottom"), logits.at("top"))
    p.arrow(bag.at("right"), (840, 76), loss.at("top"))
    p.arrow(logits.at("right"), (840, 276), loss.at("bottom"))
    p.arrow(student.at("top", -30), teacher.at("bottom", -30), dashed=True, label="moving average", place=(178, 180))
    p.arrow(
        teacher.at("bottom", 30), (290, 176), vocabulary.at("left"), dashed=True, label="a new word", place=(337, 170)
    )
    return p


def minilm() -> Picture:
    """Relations of two networks of any width."""
    p = Picture("minilm", 920, 290)
    tokens = p.box(20, 115, "tokens", "data", 90)
    loss = p.box(790, 106, "KL, sum over\nrelations", "loss", 115)
    for y, name, kind, shape in [
        (50, "teacher:\none upper layer", "frozen", "width 768, say"),
        (162, "student:\nits last layer", "trained", "width 384, say"),
    ]:
        network = p.box(160, y, name, kind, 150)
        vectors = p.box(360, y, f"Q, K, V\n{shape}", "data", 150)
        relations = p.box(560, y, "softmax(X Yᵀ / √d)\nof each head: S x S", "data", 175)
        p.arrow(tokens.at("right"), (135, 131), (135, y + 25), network.at("left"))
        p.arrow(network.at("right"), vectors.at("left"))
        p.arrow(vectors.at("right"), relations.at("left"))
        p.arrow(relations.at("right"), (847.5, y + 25), loss.at("top" if y < 100 else "bottom"))
    return p


def ssb() -> Picture:
    """Four stages of one network."""
    p = Picture("ssb", 960, 350)
    p.title(150, 30, "1  Rollouts")
    p.title(580, 30, "2  Refinement")
    p.title(580, 182, "3  TeacherLogits")
    p.title(130, 182, "4  SSBDistill")
    problem = p.box(20, 59, "problem", "data", 90)
    writes = p.box(150, 50, "model writes\nK answers", "frozen", 130)
    hints = p.box(325, 50, "first right one, first of\nthe most frequent wrong", "file", 210)
    refines = p.box(580, 50, "model sees both,\nwrites a solution", "frozen", 160)
    kept = p.box(790, 50, "kept if right\nand sound", "file", 130)
    reads = p.box(580, 200, "model sees hints:\np of each token", "frozen", 160)
    student = p.box(130, 200, "model + LoRA sees\nthe problem alone: q", "trained", 175)
    loss = p.box(380, 209, "τ² KL(p || q)", "loss", 130)
    for one, other in [(problem, writes), (writes, hints), (hints, refines), (refines, kept), (student, loss)]:
        p.arrow(one.at("right"), other.at("left"))
    p.arrow(reads.at("left"), loss.at("right"))
    p.arrow(problem.at("bottom"), (65, 225), student.at("left"))
    p.arrow(kept.at("bottom", -20), (835, 225), reads.at("right"), label="solution", place=(800, 218))
    p.arrow(kept.at("bottom", 20), (875, 285), (217.5, 285), student.at("bottom"), label="its tokens", place=(660, 279))
    return p


def synthetic() -> Picture:
    """Prompts of the teacher and of the student."""
    p = Picture("synthetic", 960, 300)
    inputs = p.box(20, 101, "inputs\nof a task", "data", 100)
    elaborate = p.box(160, 59, "elaborate prompt", "data", 150)
    plain = p.box(160, 151, "plain prompt", "data", 150)
    teacher = p.box(360, 50, "teacher, here\nor a server", "frozen", 130)
    read = p.box(540, 50, "reply: read, checked,\nkept or dropped", "data", 185)
    rows = p.box(775, 50, "rows: plain prompt\nand answer", "file", 165)
    student = p.box(580, 206, "student reads the\nplain prompt", "trained", 160)
    loss = p.box(360, 206, "CE of the\nanswer's tokens", "loss", 150)
    for box in (elaborate, plain):
        y = box.at("left")[1]
        p.arrow(inputs.at("right"), (140, 126), (140, y), box.at("left"))
    for one, other in [(elaborate, teacher), (teacher, read), (read, rows)]:
        p.arrow(one.at("right"), other.at("left"))
    p.arrow(plain.at("right"), (820, 167), (820, 100))
    p.arrow((895, 100), (895, 231), student.at("right"))
    p.arrow(student.at("left"), loss.at("right"))
    return p


def mgsr() -> Picture:
    """Where a sequence comes from, and what is learnt on it."""
    p = Picture("mgsr", 960, 370)
    p.title(20, 30, "sequence")
    p.title(250, 190, "tokens and spans")
    prompt = p.box(20, 109, "prompt", "data", 90)
    writes = p.box(150, 100, "student\nwrites y", "trained", 110)
    reads = p.box(310, 100, "teacher reads y: token j\nwith the largest KL", "frozen", 205)
    goes_on = p.box(560, 100, "its token at j;\nstudent writes on", "trained", 155)
    data = p.box(560, 40, "answer in the data", "data", 155)
    sequence = p.box(790, 109, "sequence", "data", 110)
    student = p.box(570, 206, "student: q", "trained", 120)
    teacher = p.box(570, 286, "teacher: p", "frozen", 120)
    levels = p.box(265, 277, "sub-network: levels\nl, u of each token", "trained", 190)
    loss = p.box(250, 197, "CE + DAC-KL(p, q; l, u)\n+ products of neighbours", "loss", 220)
    for one, other in [(prompt, writes), (writes, reads), (reads, goes_on), (goes_on, sequence)]:
        p.arrow(one.at("right"), other.at("left"))
    p.arrow(data.at("right"), (845, 56), sequence.at("top"))
    p.arrow(sequence.at("bottom", 20), (865, 302), teacher.at("right"))
    p.arrow(sequence.at("bottom", -20), (825, 222), student.at("right"))
    p.arrow(student.at("left"), loss.at("right"))
    p.arrow(teacher.at("left", 6), levels.at("right", 6))
    p.arrow(teacher.at("left", -8), (530, 294), (530, 236), loss.at("right", 14))
    p.arrow(levels.at("top"), loss.at("bottom"), label="l, u", place=(385, 266))
    return p


PICTURES = (mcmi, defensive, obow, minilm, ssb, synthetic, mgsr)

if __name__ == "__main__":
    folder = Path(__file__).with_name("pictures")
    folder.mkdir(exist_ok=True)
    for draw in PICTURES:
        (folder / f"{draw.__name__}.svg").write_text(draw().svg())

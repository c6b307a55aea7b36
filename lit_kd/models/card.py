"""A model card in the Hugging Face format for an exported network: what it is, how to load it, where it comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lit_kd
from lit_kd.models.factory import VisionModel
from lit_kd.models.loading_code import Loading, loading

CARD = "README.md"
_PACKAGES = ("transformers", "timm", "lightning", "torchmetrics", "peft", "nltk", "vllm")
_SECRET_NAME = re.compile(r"key|secret|passw|credential|auth|token(?!izer)", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"^(hf_|sk-|gh[pousr]_|github_pat_|xox|AKIA)|^[\w+=-]{32,}$|://")  # an address may hold one
_ABSOLUTE = re.compile(r"(?:^|[\s=:,;'\"(\[])(?:~|/|[A-Za-z]:\\)")


@dataclass(frozen=True)
class Paper:
    """A publication on arXiv.

    Attributes:
        title: of it.
        authors: as BibTeX has them, "Ada Lovelace and Alan Turing".
        year: of its publication.
        arxiv: its identifier there, such as ``2401.08732``.
    """

    title: str
    authors: str
    year: int
    arxiv: str

    @property
    def reference(self) -> str:
        """One line of Markdown."""
        names = self.authors.replace(" and ", ", ")
        return f"{names}: *{self.title}*, {self.year}, [arXiv:{self.arxiv}](https://arxiv.org/abs/{self.arxiv})"

    @property
    def bibtex(self) -> str:
        """An entry whose key is the identifier."""
        fields = {"title": f"{{{self.title}}}", "author": self.authors, "year": self.year}
        fields["journal"] = f"arXiv preprint arXiv:{self.arxiv}"
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
        return "\n".join([f"@article{{arxiv{self.arxiv},", *lines, "}"])


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a network comes from: what a model card says and the network itself does not know. All of it is optional.

    Attributes:
        method: name of the class that trained it.
        summary: what that does, in a sentence.
        papers: that published it.
        limits: what has to be said against it.
        teacher: in words.
        base_model: name on the hub of the model whose weights the training started from.
        data: the data, in words.
        dataset: their name on the hub, such as ``nyu-mll/glue``.
        settings: hyper-parameters by name; nested ones are flattened, and what may be a secret or tells of the machine
            is left out, see :func:`public`.
        metrics: numbers by name, such as ``val/acc``.
        measured: at what point.
        license: of the weights, as the hub writes it: ``apache-2.0``.
        notes: Markdown of your own.
    """

    method: str | None = None
    summary: str = ""
    papers: tuple[Paper, ...] = ()
    limits: str = ""
    teacher: str | None = None
    base_model: str | None = None
    data: str | None = None
    dataset: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured: str = ""
    license: str | None = None
    notes: str = ""


def model_card(network: nn.Module, origin: Origin, tokenizer: Any = None) -> str:
    """The text of ``README.md``: metadata that the hub reads, then Markdown.

    Args:
        network: as it is exported, whole.
        origin: where it comes from.
        tokenizer: that is exported with it.
    """
    from huggingface_hub import ModelCardData

    how = loading(network, tokenizer)
    results = _results(how, origin)
    name = network.architecture["name"] if isinstance(network, VisionModel) else type(network).__name__
    title = f"{name}, trained by {origin.method}" if origin.method else name
    tags = ["lit_kd"]
    if origin.papers:
        tags += ["knowledge-distillation", str(origin.method), *(f"arxiv:{paper.arxiv}" for paper in origin.papers)]
    data = ModelCardData(
        license=origin.license,
        library_name=how.loader,
        pipeline_tag=how.task,
        tags=tags,
        base_model=origin.base_model,
        datasets=[origin.dataset] if origin.dataset else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    sections = {
        "": f"# {title}\n\n{origin.summary}".rstrip(),
        "What it is": _facts(network, origin),
        "Use": how.text,
        "Training": _training(origin),
        "Results": _table(("metric", "value"), {k: f"{v:.6g}" for k, v in origin.metrics.items()}, origin.measured),
        "Limits": _limits(origin),
        "Notes": origin.notes.strip(),
        "Versions": ", ".join(f"{package} {number}" for package, number in versions().items()),
        "Citation": "\n\n".join(f"```bibtex\n{paper.bibtex}\n```" for paper in origin.papers),
    }
    body = "\n\n".join(f"## {head}\n\n{text}" if head else text for head, text in sections.items() if text)
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"


def adapter_card(origin: Origin) -> str:
    """The same for the folder of the adapter beside a merged network."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="peft", base_model=origin.base_model, license=origin.license, tags=["lora"])
    text = "The LoRA adapter alone of the network in the folder above: see its README.md."
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


def _results(how: Loading, origin: Origin) -> list[Any]:
    """Finite numbers of held-out data, as the hub's ``model-index`` has them; it asks for a task."""
    from huggingface_hub import EvalResult

    results = []
    for name, value in origin.metrics.items():
        split, _, metric = name.partition("/")
        if how.task and metric and split in ("val", "test") and math.isfinite(value):
            results.append(
                EvalResult(
                    task_type=how.task,
                    dataset_type=origin.dataset or "other",
                    dataset_name=origin.dataset or origin.data or "other",
                    dataset_split={"val": "validation"}.get(split, split),
                    metric_type={"acc": "accuracy"}.get(metric, metric),
                    metric_name=name,
                    metric_value=float(f"{value:.6g}"),
                )
            )
    return results


def _facts(network: nn.Module, origin: Origin) -> str:
    facts = [f"A {describe_network(network)}."]
    if isinstance(network, VisionModel):
        own = "; it normalises them itself" if network.architecture["normalize"] else ", already normalised"
        facts.append(f"Input: images (B, {network.architecture['in_chans']}, H, W), pixels in [0, 1]{own}.")
        facts.append(f"Output: {f'{network.num_classes} logits' if network.num_classes else 'features'}.")
    if origin.teacher:
        facts.append(f"Teacher: {origin.teacher}.")
    return "\n".join(f"- {fact}" for fact in facts)


def _training(origin: Origin) -> str:
    parts = [f"Trained by `{origin.method}` of lit_kd."] if origin.method else []
    parts += [f"Method: {paper.reference}." for paper in origin.papers]
    if origin.data or origin.dataset:
        names = " ".join(filter(None, (origin.data, origin.dataset and f"(`{origin.dataset}`)")))
        parts.append(f"Data: {names}.")
    parts.append(_table(("setting", "value"), public(origin.settings)))
    return "\n\n".join(filter(None, parts))


def _limits(origin: Origin) -> str:
    unknown = {
        "where it comes from and how it was trained": origin.method,
        "the license of the weights": origin.license,
        "how good it is: no number was recorded": origin.metrics,
    }
    texts = [origin.limits] if origin.limits else []
    texts += [f"Not known: {what}." for what, known in unknown.items() if not known]
    texts.append("Nothing but the numbers above was measured: not other data, nor fairness, safety or robustness.")
    return "\n".join(f"- {text}" for text in texts)


def _table(heads: tuple[str, str], rows: Mapping[str, str], caption: str = "") -> str:
    if not rows:
        return ""
    lines = [f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in rows.items()]
    table = "\n".join([f"| {heads[0]} | {heads[1]} |", "|---|---|", *lines])
    return f"{caption}\n\n{table}" if caption else table


def describe_network(network: nn.Module) -> str:
    """Its name, number of parameters and, where it came from the hub, name there."""
    name = network.architecture["name"] if isinstance(network, VisionModel) else type(network).__name__
    count = f"{sum(p.numel() for p in network.parameters()):,} parameters"
    source = hub_name(getattr(network, "weights_from", None))
    return f"`{name}` of {count}" + (f", from `{source}`" if source else "")


def hub_name(path: str | None) -> str | None:
    """``path`` if it is a name on the hub, and not a file or folder here."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(path)
    except HFValidationError:
        return None
    return None if path is None or Path(path).exists() else path


def public(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as rows of text: nested names joined by dots, no secrets, absolute paths cut to their last part.

    Left out are names that begin with ``_``, None, text under names such as ``key`` or ``token``, text that looks like
    a token, addresses, long text and objects.

    Example:
        >>> public({"lr": 0.1, "teacher": {"path": "/home/ada/bert"}, "api_key": "abc", "url": "http://me:pw@host"})
        {'lr': '0.1', 'teacher.path': 'bert'}
    """
    rows = {}
    for name, value in values.items():
        if str(name).startswith("_"):
            continue
        if isinstance(value, Mapping):
            rows.update(public(value, f"{prefix}{name}."))
            continue
        text = _public_text(str(name), value)
        if text is not None:
            rows[f"{prefix}{name}"] = text
    return rows


def _public_text(name: str, value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        texts = [_public_text(name, entry) for entry in value]
        return f"[{', '.join(map(str, texts))}]" if all(texts) and 0 < len(texts) <= 32 else None
    if isinstance(value, (bool, int, float)):
        return str(value)
    if not isinstance(value, (str, Path)):
        return None
    text = str(value)
    if _SECRET_NAME.search(name) or _SECRET_VALUE.search(text) or len(text) > 120 or "\n" in text:
        return None
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if _ABSOLUTE.search(text) else text


def versions() -> dict[str, str]:
    """Of what an export or a number was made with."""
    found = {"lit_kd": lit_kd.__version__, "torch": torch.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

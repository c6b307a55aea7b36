"""The nine tasks of GLUE (Wang et al., arXiv:1804.07461): names, classes, metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        name: As `datasets` names it: `load_dataset("nyu-mll/glue", name)`.
        folder: Of GLUE's tsv files.
        labels: Names of the classes in the order of their numbers; empty for a regression.
        metrics: What is reported, from `accuracy`, `f1`, `matthews`, `pearson`, `spearman`; the first is the one in
            the MiniLM paper's tables.
    """

    name: str
    folder: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]

    @property
    def num_labels(self) -> int:
        """Outputs of a network for the task: 1 for a regression."""
        return max(1, len(self.labels))


GLUE_TASKS = {
    task.name: task
    for task in (
        GlueTask("cola", "CoLA", ("unacceptable", "acceptable"), ("matthews",)),
        GlueTask("sst2", "SST-2", ("negative", "positive"), ("accuracy",)),
        GlueTask("mrpc", "MRPC", ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        GlueTask("qqp", "QQP", ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        GlueTask("stsb", "STS-B", (), ("pearson", "spearman")),
        GlueTask("mnli", "MNLI", ("entailment", "neutral", "contradiction"), ("accuracy",)),
        GlueTask("qnli", "QNLI", ("entailment", "not_entailment"), ("accuracy",)),
        GlueTask("rte", "RTE", ("entailment", "not_entailment"), ("accuracy",)),
        GlueTask("wnli", "WNLI", ("not_entailment", "entailment"), ("accuracy",)),
    )
}


def glue_task(name: str) -> GlueTask:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in GLUE_TASKS:
        raise ValueError(f"task={name!r} is no task of GLUE: take one of {', '.join(GLUE_TASKS)}.")
    return GLUE_TASKS[name]

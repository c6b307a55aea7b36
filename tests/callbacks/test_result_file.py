"""Results of tests and the settings that they were reached with, in one file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_toy import causal, saved
from toy import quiet_trainer

from lit_kd.callbacks import ResultFile
from lit_kd.callbacks.result_file import table, with_run
from lit_kd.datamodules import GSM8KDataModule
from lit_kd.language.engines import Sampling
from lit_kd.methods import LanguageModel
from lit_kd.models import causal_lm


def run(seed: int, rouge: float) -> dict[str, Any]:
    return {"seed": seed, "metrics": {"test/rougeL": rouge}, "versions": {}}


def settings(**changes: Any) -> dict[str, Any]:
    sampling = {"temperature": 1.0, "top_p": 1.0, **changes.pop("sampling", {})}
    data = {"class": "InstructionDataModule", "test": "vicuna"}
    base = {"module": "LanguageModel", "engine": {"model": "gpt2"}, "checkpoint": None, "limit": None}
    return {**base, "sampling": sampling, "data": data, **changes}


def test_seeds_are_averaged_and_nothing_else() -> None:
    groups: list[dict[str, Any]] = []
    for seed, rouge in ((20, 24.0), (10, 23.0), (30, 28.0)):
        groups = with_run(groups, settings(), run(seed, rouge))
    groups = with_run(groups, settings(sampling={"repetition_penalty": 1.2}), run(10, 50.0))
    assert [[one["seed"] for one in group["runs"]] for group in groups] == [[10, 20, 30], [10]]
    assert groups[0]["mean"] == {"test/rougeL": 25.0} and groups[1]["mean"] == {"test/rougeL": 50.0}
    assert groups[0]["deviation"]["test/rougeL"] == pytest.approx(7**0.5) and groups[1]["deviation"] == {}
    groups = with_run(groups, settings(), run(30, 25.0))  # once more: the former one is replaced
    assert groups[0]["mean"] == {"test/rougeL": 24.0} and len(groups[0]["runs"]) == 3 and len(groups) == 2


def test_the_table_says_how() -> None:
    groups = with_run([], settings(), run(10, 23.0))
    groups = with_run(groups, settings(), run(20, 24.0))
    groups = with_run(groups, settings(limit=500, engine=None, checkpoint="last.ckpt"), run(10, 3.0))
    assert table(groups).splitlines() == [
        "| model | data | sampling | seeds | rougeL |",
        "|---|---|---|---|---|",
        "| gpt2 | InstructionDataModule vicuna | temperature 1.0, top_p 1.0 | 10, 20 | 23.50 ± 0.71 |",
        "| last.ckpt | InstructionDataModule vicuna, the first 500 | temperature 1.0, top_p 1.0 | 10 | 3 |",
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("model"), causal(max_position_embeddings=512))


def answers_to(path: str, folder: Path, seed: int, change: Any = None, **sampling: Any) -> list[dict[str, Any]]:
    (folder / "test.jsonl").write_text('{"question": "1+1?", "answer": "2\\n#### 2"}\n' * 3)
    network: Any = causal_lm(path)
    if change is not None:
        change(network)
    module = LanguageModel(network, sampling=Sampling(max_new_tokens=3, seed=seed, **sampling))
    file = str(folder / "results" / "gsm8k.json")
    quiet_trainer(callbacks=[ResultFile(file)]).test(module, GSM8KDataModule(tokenizer=path, root=folder))
    return json.loads(Path(file).read_text())


def test_a_test_is_written_with_all_that_decided_on_it(path: str, tmp_path: Path) -> None:
    answers_to(path, tmp_path, 10)
    (group,) = answers_to(path, tmp_path, 20)
    assert [one["seed"] for one in group["runs"]] == [10, 20]
    first = group["runs"][0]
    assert first["metrics"].keys() == group["mean"].keys() and "test/pass@1" in first["metrics"]
    assert {"torch", "transformers", "lit_kd"} <= first["versions"].keys()
    how = group["settings"]
    free = ("top_k", "top_p", "min_p", "repetition_penalty", "samples", "temperature")
    assert how["sampling"] == {"max_new_tokens": 3, **{name: getattr(Sampling(), name) for name in free}}
    assert (how["engine"]["model"], how["checkpoint"], how["data"]["class"]) == (path, None, "GSM8KDataModule")
    assert how["limit_test_batches"] == 1.0 and how["precision"] == "32-true" and how["kind"] == "number"
    assert "pass@1" in (tmp_path / "results/gsm8k.md").read_text()
    assert not [file for file in (tmp_path / "results").iterdir() if file.name.startswith(".")]


def test_other_weights_of_the_same_path_are_another_group(path: str, tmp_path: Path) -> None:
    """A network trained again into the same folder must not be averaged with its former self."""

    @torch.no_grad()
    def change(network: Any) -> None:
        network.get_output_embeddings().weight.add_(1.0)

    answers_to(path, tmp_path, 10)
    one, other = answers_to(path, tmp_path, 10, change)
    assert one["settings"]["weights"] != other["settings"]["weights"]
    assert len(answers_to(path, tmp_path, 10, temperature=0.0)) == 3


def test_bad_path() -> None:
    with pytest.raises(ValueError, match=r"path='results' must end in .json: the table takes the same name with .md"):
        ResultFile("results")

"""Training rows written in two processes: ``synthesis_worker.py ddp FOLDER``."""

import json
from pathlib import Path
from typing import Any

import two_processes
from synthesis_toy import Teacher, own_task, write_rows
from toy import quiet_trainer

from lit_kd.datamodules import TaskDataModule
from lit_kd.language.records import read_records
from lit_kd.methods import Synthesis

ROWS = [{"question": f"{i % 7} + {i % 7}", "answer": str(2 * (i % 7))} for i in range(11)]  # the last four repeat


def teacher(chat: Any, sampling: Any) -> str:
    question = chat[-1]["content"].removeprefix("Q: ")
    return "no idea" if question == "3 + 3" else json.dumps({"reason": "r", "answer": eval(question)})


def run(kind: str, devices: int, folder: Path) -> dict[str, Any]:
    """The rows, the report, and the sentence on too few answers, which every process has to raise."""
    folder.mkdir(exist_ok=True)
    task, root = own_task(folder), write_rows(folder / "data" / "train.jsonl", ROWS)
    found: dict[str, Any] = {}
    for threshold in (0.5, 0.9):
        trainer = quiet_trainer(devices=devices, strategy="ddp" if devices > 1 else "auto")
        module = Synthesis(str(folder / "out"), engine=Teacher(teacher), min_success=threshold)
        data = TaskDataModule(task=task, mode="cot", root=root, duplicates=1.0, eval_batch_size=2)
        try:
            trainer.predict(module, data)
        except ValueError as error:
            found["sentence"] = str(error).replace(str(folder), "")
    report = json.loads((folder / "out/report.json").read_text())
    return {**found, "rows": read_records(folder / "out"), "report": report}


if __name__ == "__main__":
    two_processes.main(lambda kind, folder: run(kind, 2, folder))

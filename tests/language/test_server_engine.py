"""Generation by a server: what is repeated, what is lost, what ends a run; and a real one."""

import importlib.util
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_toy import causal, saved

from lit_kd.language.chat import Prompt, encode_prompt, lm_tokenizer
from lit_kd.language.engines import Completion, Sampling, ServerEngine

GOOD = Completion("done", "stop", None, 3, 2)
ERROR = Completion("", "error", None, 0, 0)


def answer(text: Any = "done", reason: Any = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class Server(ThreadingHTTPServer):
    """Does what the last message says; keeps the requests, and how many there were at once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.seen: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.now = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *args: Any) -> None:
        """The client left: nothing to say."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        word, _, number = request["messages"][-1]["content"].partition(" ")
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.add(self.headers["Authorization"])
            self.server.seen[word + number] += 1
            times = self.server.seen[word + number]
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            self.respond(word, number, times)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def respond(self, word: str, number: str, times: int) -> None:
        if word == "once" and times == 1:  # one failure
            return self.send(int(number), {"error": {"message": "busy"}})
        if word == "always":
            return self.send(int(number), {"error": {"message": "no"}})
        if word == "slow" and times == 1:
            time.sleep(0.6)
        if word == "work":
            time.sleep(0.1)
        if word == "html":
            return self.send(200, "<html>hello</html>", "text/html")
        bodies: dict[str, Any] = {
            "broken": '{"choices": [',
            "empty": {**answer(), "choices": []},
            "other": {"generated_text": "done"},
            "nothing": answer(None),
            "filtered": answer("do", "content_filter"),
            "long": answer("don", "length"),
            "list": [1, 2],
        }
        return self.send(200, bodies.get(word, answer()))

    def send(self, status: int, body: Any, kind: str = "application/json") -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def engine(server: Server, **settings: Any) -> ServerEngine:
    return ServerEngine("m", server.url, **{"backoff": 0.01, **settings})


def chats(*words: str) -> list[Prompt]:
    return [[{"role": "user", "content": word}] for word in words]


def test_requests_carry_all_settings(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    own = engine(server, key_variable="MY_KEY", extra={"chat_template_kwargs": {"enable_thinking": False}})
    assert own.generate(chats("a", "b"), Sampling(7, samples=2), keys=[3, 4]) == [[GOOD, GOOD]] * 2
    assert server.keys == {"Bearer secret"}
    seeds = {request.pop("seed") for request in server.requests}
    assert len(seeds) == 4 and all(0 <= seed < 2**31 for seed in seeds)
    plain = {"model": "m", "max_tokens": 7, "temperature": 1.0, "top_p": 1.0}
    for request in server.requests:
        request.pop("messages")
        assert request == {**plain, "chat_template_kwargs": {"enable_thinking": False}}
    server.requests.clear()
    engine(server).generate(chats("a"), Sampling(7, 0.5, 20, 0.9, 0.1, 1.2, samples=2), keys=[3])
    assert {request["seed"] for request in server.requests} < seeds
    named = {"temperature": 0.5, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2}
    assert all(request[name] == value for request in server.requests for name, value in named.items())


@pytest.mark.parametrize("status", [408, 409, 413, 429, 500, 502, 503])
def test_busy_server_is_asked_again(status: int, server: Server) -> None:
    assert engine(server).generate(chats(f"once {status}"), Sampling()) == [[GOOD]]
    assert server.seen[f"once{status}"] == 2
    found = engine(server, retries=3).generate(chats("a", f"always {status}", "b"), Sampling())
    assert found == [[GOOD], [ERROR], [GOOD]] and server.seen[f"always{status}"] == 4


def test_waits_grow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("lit_kd.language.engines.server.time.sleep", waits.append)
    engine(server, retries=5, backoff=20).generate(chats("always 429"), Sampling())
    assert waits == [20, 40, 60, 60, 60]


def test_slow_answer_is_asked_for_again(server: Server) -> None:
    assert engine(server, timeout=0.3).generate(chats("slow"), Sampling()) == [[GOOD]]
    assert server.seen["slow"] == 2
    assert engine(server, timeout=0.3, retries=0).generate(chats("slow 2"), Sampling()) == [[ERROR]]


def test_malformed_answers_are_errors_of_their_own(server: Server) -> None:
    words = ("broken", "a", "empty", "other", "nothing", "filtered", "list", "long", "always 400")
    found = engine(server).generate(chats(*words), Sampling())
    expected = [ERROR, GOOD, ERROR, ERROR, ERROR, ERROR, ERROR, Completion("don", "length", None, 3, 2), ERROR]
    assert [completion for (completion,) in found] == expected
    assert all(server.seen[word] == 1 for word in ("broken", "empty", "always400"))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_requests_overlap_up_to_the_bound(concurrency: int, server: Server) -> None:
    own = engine(server, concurrency=concurrency)
    start = time.monotonic()
    found = own.generate(chats(*(f"work {i}" for i in range(12))), Sampling())
    assert found == [[GOOD]] * 12 and server.most == concurrency
    if concurrency == 4:
        assert time.monotonic() - start < 0.9  # in turn 1.2


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_wrong_key_or_model_ends_the_run(status: int, server: Server) -> None:
    sentence = rf"The server {server.url} answers {status}.*; see that base_url .* model='m' .* OPENAI_API_KEY\.$"
    with pytest.raises(ConnectionError, match=sentence):
        engine(server, concurrency=1).generate(chats(f"always {status}", *(f"a {i}" for i in range(50))), Sampling())
    assert sum(server.seen.values()) < 10


def test_another_protocol(server: Server) -> None:
    with pytest.raises(ConnectionError, match="does not speak OpenAI's protocol: it answers '<html>hello</html>'"):
        engine(server).generate(chats("html"), Sampling())


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        own = ServerEngine("m", url, retries=1, backoff=0.01)
        with pytest.raises(ConnectionError, match=rf"The server {url} cannot be reached \(.*refused"):
            own.generate(chats("a"), Sampling())


def test_bad_arguments(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, sentence in (
        ({"concurrency": 0}, "concurrency=0 must be at least 1"),
        ({"retries": -1}, "retries=-1 must be at least 0"),
        ({"backoff": -1.0}, "backoff=-1.0 must be at least 0"),
        ({"timeout": 0}, "timeout=0 must be a positive number"),
        ({"base_url": "localhost:8000"}, "base_url='localhost:8000' must begin with http"),
    ):
        with pytest.raises(ValueError, match=sentence):
            ServerEngine(**{"model": "m", "base_url": server.url, **settings})
    with pytest.raises(ValueError, match="ServerEngine completes chats"):
        engine(server).generate(["a text"], Sampling())
    own = ServerEngine("m", "https://me:secret@example.org/v1?token=secret")
    assert own.describe() == {"kind": "server", "model": "m", "base_url": "https://example.org/v1", "extra": {}}
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r'ServerEngine needs openai: pip install "lit-kd\[llm\]"'):
        engine(server)


@pytest.mark.slow
def test_transformers_serve(tmp_path: Path) -> None:
    """A real server, with a tiny network of random weights: greedy answers are those of ``generate``."""
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"`transformers serve` needs pip install {' '.join(missing)}")
    network = causal(max_position_embeddings=128, seed=3)
    path = saved(tmp_path / "model", network)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(Path(sys.executable).with_name("transformers")), "serve", path, "--port", port, "--device", "cpu"]
    log = tmp_path / "log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.5)
            own = ServerEngine(path, f"{url}/v1", concurrency=2, timeout=60)
            prompts = chats("hi", "what is 1 + 1 ?")
            found = own.generate(prompts, Sampling(6, temperature=0))
            sampled = own.generate(prompts[:1], Sampling(6, samples=2))
        finally:
            process.terminate()
    tokenizer = lm_tokenizer(path)
    for prompt, (completion,) in zip(prompts, found, strict=True):
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        written = network.generate(input_ids=ids, do_sample=False, max_new_tokens=6, pad_token_id=0)
        text = tokenizer.decode(written[0, ids.shape[1] :].tolist(), skip_special_tokens=True)
        assert completion.text == text, log.read_text()
        assert (completion.finish_reason, completion.prompt_tokens) == ("length", ids.shape[1])
        assert completion.ids is None and completion.completion_tokens == 6
    assert [completion.finish_reason for completion in sampled[0]] != ["error"] * 2

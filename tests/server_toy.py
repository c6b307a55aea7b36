"""Servers for tests: one that answers as the last message says, and a real one."""

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
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from json_server import JSONHandler, serving


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
        self.reply = "done"
        self.mended = False  # True: does no more what the messages say
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *args: Any) -> None:
        """The client left: nothing to say."""


class Handler(JSONHandler):
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
        if self.server.mended:
            return self.send(200, answer(self.server.reply))
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
        return self.send(200, bodies.get(word, answer(self.server.reply)))


@contextmanager
def fault_server() -> Iterator[Server]:
    """A running server of ours."""
    server = Server()
    with serving(server):
        yield server


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def transformers_serve(path: str, port: int, log: Path) -> Iterator[subprocess.Popen]:
    """`transformers serve` on the CPU, once it is up; ended afterwards."""
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"`transformers serve` needs pip install {' '.join(missing)}")
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", path, "--port", str(port), "--device", "cpu"]
    with log.open("a") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.5)
            yield process
        finally:
            process.terminate()

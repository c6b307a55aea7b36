"""A stand-in for the hub: takes a repository and its files over HTTP, as huggingface_hub sends them."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from json_server import JSONHandler, serving


class Hub(ThreadingHTTPServer):
    """Keeps what was created and uploaded, and the tokens that came along."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()


class _Handler(JSONHandler):
    server: Hub

    def do_GET(self) -> None:
        self.send(200, {"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self.send(200, {"url": f"{self.server.url}/me/mine"})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.send(200, {"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.send(200, {"commitUrl": f"{self.server.url}/me/mine/commit/1", "commitOid": "1" * 40})
        return self.send(200, {"errors": [], "warnings": []})  # of the card's metadata


@contextmanager
def hub() -> Iterator[Hub]:
    """A running stand-in."""
    server = Hub()
    with serving(server):
        yield server

"""Generation by a server: what is repeated, what is lost, what ends a run; and a real one."""

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_toy import causal, saved
from server_toy import Server, fault_server, free_port, transformers_serve

from lit_kd.language.chat import Prompt, encode_prompt, lm_tokenizer
from lit_kd.language.engines import Completion, Sampling, ServerEngine

GOOD = Completion("done", "stop", None, 3, 2)
ERROR = Completion("", "error", None, 0, 0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with fault_server() as server:
        yield server


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


def test_requests_and_tokens_are_counted(server: Server) -> None:
    own = engine(server)
    own.generate(chats("a", "once 500", "broken", "long"), Sampling())
    assert own.counts == {"requests": 5, "repeated": 1, "prompt_tokens": 9, "completion_tokens": 6}
    assert server.seen.total() == 5


def test_requests_keep_their_rate(server: Server) -> None:
    def took(**limits: float) -> float:
        own, start = engine(server, **limits), time.monotonic()
        assert own.generate(chats(*"abcdefg"), Sampling()) == [[GOOD]] * 7
        return time.monotonic() - start

    assert took(requests_per_minute=1200) >= 6 * 0.05
    assert took(tokens_per_minute=6000, concurrency=1) >= 6 * 0.05  # 5 tokens an answer
    waited = engine(server, requests_per_minute=1200)
    start = time.monotonic()
    waited.generate(chats("once 503", "once 502"), Sampling())  # repeated requests count, too
    assert time.monotonic() - start >= 3 * 0.05


def test_bad_arguments(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, sentence in (({"base_url": "localhost:8000"}, "base_url='localhost:8000' must begin with http"),):
        with pytest.raises(ValueError, match=sentence):
            ServerEngine(**{"model": "m", "base_url": server.url, **settings})
    with pytest.raises(ValueError, match="ServerEngine completes chats"):
        engine(server).generate(["a text"], Sampling())
    own = ServerEngine("m", "https://me:secret@example.org/v1?token=secret")
    assert own.describe() == {"kind": "server", "model": "m", "base_url": "https://example.org/v1", "extra": {}}
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"ServerEngine needs openai: pip install 'lit-kd\[llm\]'"):
        engine(server)


@pytest.mark.slow
def test_transformers_serve(tmp_path: Path) -> None:
    """A real server, with a tiny network of random weights: greedy answers are those of ``generate``."""
    network = causal(max_position_embeddings=128, seed=3)
    path, port, log = saved(tmp_path / "model", network), free_port(), tmp_path / "log"
    with transformers_serve(path, port, log):
        own = ServerEngine(path, f"http://127.0.0.1:{port}/v1", concurrency=2, timeout=60)
        prompts = chats("hi", "what is 1 + 1 ?")
        found = own.generate(prompts, Sampling(6, temperature=0))
        sampled = own.generate(prompts[:1], Sampling(6, samples=2))
    tokenizer = lm_tokenizer(path)
    for prompt, (completion,) in zip(prompts, found, strict=True):
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        written = network.generate(input_ids=ids, do_sample=False, max_new_tokens=6, pad_token_id=0)
        text = tokenizer.decode(written[0, ids.shape[1] :].tolist(), skip_special_tokens=True)
        assert completion.text == text, log.read_text()
        assert (completion.finish_reason, completion.prompt_tokens) == ("length", ids.shape[1])
        assert completion.ids is None and completion.completion_tokens == 6
    assert [completion.finish_reason for completion in sampled[0]] != ["error"] * 2

"""Generation by a server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, transformers serve, OpenAI."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from lit_kd.checks import check_not_negative, check_positive, check_whole
from lit_kd.language.chat import Prompt
from lit_kd.language.engines.sampling import Completion, Engine, Sampling, draws, limits, request_seed

logger = logging.getLogger(__name__)

_LATER = {408, 409, 413, 429}  # and 5xx
_LONGEST_WAIT = 60.0  # seconds


class ServerEngine(Engine):
    """A model behind an OpenAI-compatible server, asked by several requests at once.

    Requests that time out, or are answered by 408, 409, 413, 429 or 5xx, are repeated after ``backoff`` seconds, twice
    as many each time (or as the server's Retry-After says). What is not answered then, or answered without a usable
    choice, is a completion with the reason "error": the others are not lost. Draws depend on seed, key and number of
    the sample as far as the server heeds ``seed``; token ids are unknown. Limits are kept by waiting before requests
    are sent, so that none is refused: each takes its share of a minute, and the tokens of an answer, which are known
    afterwards, put off later ones.

    Args:
        model: name of the model, as the server knows it.
        base_url: of the server, usually ending with ``/v1``.
        key_variable: name of the environment variable that holds the key; local servers need none.
        concurrency: requests at a time.
        timeout: seconds that an answer may take.
        retries: of one request.
        backoff: seconds before the first of them.
        extra: further entries of the requests.
        requests_per_minute: sent at most, repeated ones included; None: no limit.
        tokens_per_minute: of prompts and completions together, at most; None: no limit.

    Attributes:
        counts: of this process so far: "requests" sent, "repeated" ones among them, "prompt_tokens" and
            "completion_tokens" of what was answered.

    Raises:
        ImportError: the openai client is missing.
        ValueError: a number out of range, a base_url that is none.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 180.0,
        retries: int = 5,
        backoff: float = 0.5,
        extra: dict[str, Any] | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ImportError("ServerEngine needs openai: pip install 'lit-kd[llm]'.") from error
        check_whole(concurrency=concurrency)
        check_whole(0, retries=retries)
        check_not_negative(backoff=backoff)
        check_positive(timeout=timeout)
        paces = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        check_positive(**{name: limit for name, limit in paces.items() if limit is not None})
        if urlsplit(base_url).scheme not in ("http", "https"):
            raise ValueError(f"base_url={base_url!r} must begin with http:// or https://.")
        self.model, self.base_url, self.key_variable = model, base_url, key_variable
        self.concurrency, self.retries, self.backoff = concurrency, retries, backoff
        self.extra = extra or {}
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._next = 0.0  # when the next request may be sent
        key = os.environ.get(key_variable) or "none"
        self._openai = openai
        self._client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=0)

    def describe(self) -> dict[str, Any]:
        """Model, server without user and password, further entries of the requests."""
        url = urlsplit(self.base_url)
        place = url._replace(netloc=url.netloc.rpartition("@")[2], query="").geturl()
        return {"kind": "server", "model": self.model, "base_url": place, "extra": self.extra}

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[int] | None = None,
        budgets: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """See :class:`Engine`; prompts are chats.

        Raises:
            ValueError: a prompt that is a text or token ids.
            ConnectionError: the server can't be reached, refuses the key or the model, or speaks another protocol.
        """
        if any(isinstance(prompt, (str, tuple)) for prompt in prompts):
            raise ValueError("ServerEngine completes chats: give lists of messages, not plain texts or token ids.")
        most = limits(prompts, sampling, budgets)
        results: list[list[Completion]] = [[] for _ in prompts]
        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting = [
                (position, pool.submit(self._ask, prompts[position], sampling, most[position], request_seed(draw)))
                for position, _, draw in draws(prompts, sampling, keys)
            ]
            try:
                for position, answer in waiting:
                    results[position].append(answer.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return results

    def _ask(self, chat: Any, sampling: Sampling, limit: int, seed: int) -> Completion:
        beyond = {"top_k": sampling.top_k or None, "min_p": sampling.min_p or None}  # not OpenAI's, so only if asked
        beyond["repetition_penalty"] = None if sampling.repetition_penalty == 1 else sampling.repetition_penalty
        for attempt in range(self.retries + 1):
            self._wait_for_turn(repeated=attempt > 0)
            try:
                answer = self._client.chat.completions.create(
                    model=self.model,
                    messages=chat,
                    max_tokens=limit,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    seed=seed,
                    extra_body={name: value for name, value in beyond.items() if value is not None} | self.extra,
                )
                return self._read(answer)
            except self._openai.APIStatusError as error:
                reason, header = f"{error.status_code}: {error.message}", error.response.headers.get("retry-after", "")
                if error.status_code in (401, 403, 404, 405):
                    raise self._unusable(
                        f"answers {reason}; see that base_url (usually ending with /v1) and model={self.model!r} are "
                        f"right, and the key in the variable {self.key_variable}"
                    ) from error
                if error.status_code not in _LATER and error.status_code < 500:
                    return _error(reason)
            except self._openai.APITimeoutError:
                reason, header = "no answer in time", ""
            except self._openai.APIConnectionError as error:
                if attempt == self.retries:
                    raise self._unusable(f"cannot be reached ({error.__cause__ or error})") from error
                reason, header = str(error), ""
            except ValueError as error:  # not JSON, though it says so
                return _error(f"malformed answer, {error}")
            if attempt < self.retries:
                asked = float(header) if header.replace(".", "", 1).isdigit() else 0.0
                time.sleep(min(max(asked, self.backoff * 2**attempt), _LONGEST_WAIT))
        return _error(reason)

    def _read(self, answer: Any) -> Completion:
        if isinstance(answer, str):  # the client hands over what is not JSON
            raise self._unusable(f"does not speak OpenAI's protocol: it answers {answer[:80]!r}")
        choices = getattr(answer, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        text = getattr(getattr(choice, "message", None), "content", None)
        reason = getattr(choice, "finish_reason", None)
        if not isinstance(text, str) or reason not in ("stop", "length"):
            return _error(f"malformed answer, finish_reason {reason}")
        return Completion(text, reason, None, *self._spend(getattr(answer, "usage", None)))

    def _wait_for_turn(self, repeated: bool) -> None:
        """Sleep until a request may be sent."""
        with self._lock:
            self.counts.update(requests=1, repeated=repeated)
            turn = max(self._next, time.monotonic())
            self._next = turn + 60 / (self.requests_per_minute or float("inf"))
        if (wait := turn - time.monotonic()) > 0:
            time.sleep(wait)

    def _spend(self, usage: Any) -> tuple[int, int]:
        """Count the tokens of prompt and completion, and put off later requests by their share of a minute."""
        prompt, completion = (getattr(usage, name, None) or 0 for name in ("prompt_tokens", "completion_tokens"))
        with self._lock:
            self.counts.update(prompt_tokens=prompt, completion_tokens=completion)
            share = 60 * (prompt + completion) / (self.tokens_per_minute or float("inf"))
            self._next = max(self._next, time.monotonic()) + share
        return prompt, completion

    def _unusable(self, what: str) -> ConnectionError:
        return ConnectionError(f"The server {self.describe()['base_url']} {what}.")


def _error(reason: str) -> Completion:
    logger.warning("a request has no completion: %s", reason)
    return Completion("", "error", None, 0, 0)

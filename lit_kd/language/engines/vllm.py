"""Generation by vLLM, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_kd.language.chat import Prompt, encode_prompt, end_tokens, lm_tokenizer
from lit_kd.language.engines.sampling import Completion, Engine, Sampling, draws, limits, request_seed


class VLLMEngine(Engine):
    """vLLM in this process: much faster on a GPU than :class:`TransformersEngine`; token ids go in and come out.

    Its logits differ a little from those of transformers: score with the network itself where that matters. Draws
    depend on seed, key and number of the sample by a seed for each request.

    Args:
        path: folder or hub name of the network.
        settings: further arguments of ``vllm.LLM``, such as ``dtype`` or ``gpu_memory_utilization``.

    Raises:
        ImportError: vLLM is missing.
    """

    def __init__(self, path: str, settings: dict[str, Any] | None = None) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ImportError("VLLMEngine needs vllm: pip install vllm, on a machine with a GPU.") from error
        self.path, self.settings = path, settings or {}
        self.tokenizer = lm_tokenizer(path)
        # "vllm": not the generation config of the checkpoint.
        self._vllm, self._llm = vllm, vllm.LLM(model=path, generation_config="vllm", **self.settings)

    def describe(self) -> dict[str, Any]:
        """Path and settings."""
        return {"kind": "vllm", "model": self.path, "settings": self.settings}

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[int] | None = None,
        budgets: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """See :class:`Engine`."""
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        jobs = list(draws(prompts, sampling, keys))
        most = limits(prompts, sampling, budgets)
        parameters = [
            self._vllm.SamplingParams(
                n=1,
                max_tokens=most[position],
                temperature=sampling.temperature,
                top_k=sampling.top_k or -1,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
                seed=request_seed(draw),
                stop_token_ids=list(end_tokens(self.tokenizer)),
            )
            for position, _, draw in jobs
        ]
        requests = [{"prompt_token_ids": encoded[position]} for position, _, _ in jobs]
        answers = self._llm.generate(requests, parameters, use_tqdm=False)
        results: list[list[Completion]] = [[] for _ in prompts]
        for (position, _, _), answer in zip(jobs, answers, strict=True):
            (written,) = answer.outputs
            ids = tuple(written.token_ids)
            reason: Any = written.finish_reason if written.finish_reason in ("stop", "length") else "error"
            text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            results[position].append(Completion(str(text), reason, ids, len(encoded[position]), len(ids)))
        return results

"""Engines that write completions: the network in this process, vLLM, or a server."""

from lit_kd.language.engines.hugging_face import TransformersEngine
from lit_kd.language.engines.mixture import MixedEngine
from lit_kd.language.engines.sampling import Completion, Engine, Sampling
from lit_kd.language.engines.server import ServerEngine
from lit_kd.language.engines.vllm import VLLMEngine

__all__ = ["Completion", "Engine", "MixedEngine", "Sampling", "ServerEngine", "TransformersEngine", "VLLMEngine"]

"""Generation by vLLM inside this process: no server, no worker processes, every rank drives its own share of an engine.

Ranks of one engine (tensor parallel) are given the same requests and sample the same tokens; engines that share experts
(data parallel) step together. What is sampled depends on the weights, the prompt and the request's own seed only.
"""

import hashlib
import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1zero import config, device
from r1zero.batch import Prompt, Response
from r1zero.config import UserError
from r1zero.layout import Layout
from r1zero.rollout import cpu_vllm, in_use, npu_vllm, surroundings
from r1zero.rollout.places import Named, Places, learn

EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")

# What a device needs beyond the rest. Weights stay in plain format on NPU, as they are loaded anew after every update.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "cuda": {"enable_sleep_mode": True},
    "npu": {"enable_sleep_mode": True, "additional_config": {"weight_nz_mode": 0, "enable_cpu_binding": False}},
}


class Engine:
    """This rank's part of the engine that it serves. Weights are random until `reload`."""

    def __init__(self, cfg: config.Config, layout: Layout, rank: int, *,
                 stop_token_ids: list[int], forbidden_ids: list[int]):
        """Called together by all ranks of layout.rollout, inside the job's world.

        stop_token_ids: a response ends with any of these, and with no other token.
        forbidden_ids: ids that no token has; they are masked before the softmax, in sampling and in logprobs alike.
        Raises UserError where the model cannot hold one response with its prompt.
        """
        self._cfg, self._stop_token_ids = cfg, stop_token_ids
        self._asleep = self._cache_asleep = False
        self._stack = ExitStack()
        shape = json.loads((Path(cfg.model.path) / "config.json").read_text(encoding="utf-8"))
        arguments = _arguments(cfg, shape)
        with device.quiet_imports():
            from vllm import LLM, SamplingParams
            from vllm.sampling_params import RequestOutputKind

            if cfg.run.device == "cpu":
                self._stack.enter_context(cpu_vllm.mended())
        with (surroundings.generators_kept(cfg.run.device), surroundings.environment(layout, rank),
              surroundings.world_of(layout.rollout.ranks)):
            with cpu_vllm.building() if cfg.run.device == "cpu" else ExitStack():
                self._llm = LLM(**arguments)
        self._llm.apply_model(lambda model: _sample_from(model, cfg.rollout.temperature, forbidden_ids))
        self._sampling = lambda **fields: SamplingParams(
            detokenize=False, ignore_eos=True, skip_clone=True, output_kind=RequestOutputKind.FINAL_ONLY, **fields)
        self.owned_experts = range(self._llm.llm_engine.model_config.get_num_experts())
        """Routed experts whose weights this rank holds, whole or cut."""
        if cfg.layout.rollout.enable_expert_parallel:
            self.owned_experts = _owned_experts(len(self.owned_experts), layout, rank)

    def generate(self, prompts: list[Prompt], group_size: int, iteration: int,
                 on_finished: Callable[[Response], None]) -> list[Response]:
        """group_size responses to each prompt, in (prompt, sample) order.

        `on_finished` gets each as it ends, while others still decode. The prompts are this rank's engine's: the same on
        its tensor-parallel ranks, which all get all responses.
        """
        for p, prompt in enumerate(prompts):
            for sample in range(group_size):
                seed = request_seed(self._cfg.run.seed, iteration, prompt.index, sample)
                self._request(f"{p}-{sample}", prompt.token_ids, temperature=1.0, seed=seed, logprobs=0,
                              max_tokens=self._cfg.rollout.max_response_tokens, stop_token_ids=self._stop_token_ids)
        responses = {}
        for output in self._outputs():
            response = _response(output)
            responses[response.prompt, response.sample] = response
            on_finished(response)
        return [responses[p, sample] for p in range(len(prompts)) for sample in range(group_size)]

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        """Logprobs of tokens 1.. of each sequence by the logits that generate samples from."""
        for i, tokens in enumerate(sequences):
            self._request(str(i), tokens, temperature=0.0, max_tokens=1, prompt_logprobs=0)
        scores: dict[int, list[float]] = {}
        for output in self._outputs():
            pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
            scores[int(output.request_id)] = [of_token[token].logprob for token, of_token in pairs]
        return [scores[i] for i in range(len(sequences))]

    def places(self, tensors: list[Named]) -> Places:
        """Where this rank keeps those of its weights that may be written in place, for as long as it lives: all on NPU, all but experts
        on CUDA, which a kernel may want in an order of its own, what no kernel wants packed on the CPU. Writing counts with the next
        `reload` only, while which it is done."""
        def find(model: nn.Module) -> Places:
            kept = {"cpu": lambda: cpu_vllm.kept_as_loaded(model, tensors), "cuda": lambda: [t for t in tensors if not EXPERT.search(t[0])],
                    "npu": lambda: npu_vllm.kept_as_loaded(model, self._llm.llm_engine.model_config, tensors)}[self._cfg.run.device]()
            return learn(model.load_weights, kept, self._llm.llm_engine.model_config.dtype)

        (found,) = self._llm.apply_model(find)
        return found

    def probe(self, prompts: list[Prompt], tokens: int) -> list[Response]:
        """One response of so many tokens to each prompt, by seeds of its own: equal weights give equal ones, whenever it is called."""
        for p, prompt in enumerate(prompts):
            self._request(f"{p}-0", prompt.token_ids, temperature=1.0, seed=request_seed(self._cfg.run.seed, 0, p, 0), logprobs=0,
                          max_tokens=tokens)
        found = sorted(map(_response, self._outputs()), key=lambda response: response.prompt)
        self._drop_prefixes()   # as if nothing had been asked
        return found

    def hidden(self, tokens: list[int]) -> dict[int, Tensor]:
        """Hidden states of one sequence: see in_use.recorded."""
        with in_use.recorded(self._model, len(tokens)) as found:
            self.score([tokens])
        return found

    def held(self, name: str, rows: Mapping[str, int]) -> list[Tensor]:
        return in_use.held(self._model, name, rows, self.owned_experts)

    def groups(self) -> dict[str, dist.ProcessGroup]:
        return in_use.groups(self._cfg.layout.rollout.enable_expert_parallel)

    @property
    def _model(self) -> nn.Module:
        return self._llm.apply_model(lambda model: model)[0]

    def reload(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Take new weights: (Hugging Face checkpoint name, full tensor), layer by layer; vLLM cuts this rank's share.

        The iterator may run collectives, and write weights that are not in it to their `places`: it is walked to its end on every
        rank. A tensor must stay as it is until the rest of its layer has come. What the old weights left in the prefix cache is
        dropped.
        """
        if self._cfg.run.device == "npu":
            self._llm.apply_model(lambda model: npu_vllm.take(model, self._llm.llm_engine.model_config, weights))
        else:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self._cache_asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._cache_asleep = False
        if self._cfg.run.device == "cpu":
            self._llm.apply_model(cpu_vllm.repack_tied_head)
        self._drop_prefixes()

    def _drop_prefixes(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache: requests are still running")

    def sleep(self) -> None:
        """Free the device for training: weights and key-value cache are dropped. Nothing on CPU, where vLLM cannot."""
        if self._cfg.run.device != "cpu":
            self._llm.sleep(level=2)
            self._asleep = True

    def wake(self) -> None:
        """Take the memory again, where it was left; `reload` must follow."""
        if self._asleep:
            self._asleep = False
            self._llm.wake_up(tags=["weights"])   # the cache when the trainer's weights have come and gone
            self._cache_asleep = True

    def close(self) -> None:
        """Release the engine and its groups. Called together by all ranks of layout.rollout."""
        end = dist.destroy_process_group
        # vLLM's shutdown ends the default process group too; that one is the job's.
        with mock.patch.object(dist, "destroy_process_group", lambda group=None: group and end(group)):
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        self._stack.close()

    def _request(self, name: str, tokens: Any, **fields: Any) -> None:
        prompt = {"type": "token", "prompt_token_ids": list(tokens)}
        self._llm.llm_engine.add_request(name, prompt, self._sampling(**fields))

    def _outputs(self) -> Iterator[Any]:
        """Step until nothing is left, here and on the engines that share experts with this one."""
        engine = self._llm.llm_engine
        with surroundings.generators_kept(self._cfg.run.device):
            while engine.has_unfinished_requests():
                yield from engine.step()


def request_seed(run_seed: int, iteration: int, prompt_index: int, sample: int) -> int:
    """The 63-bit seed of one response: the same wherever, and beside whatever, it is sampled."""
    digest = hashlib.blake2b(f"{run_seed} {iteration} {prompt_index} {sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _response(output: Any) -> Response:
    prompt, sample = map(int, output.request_id.split("-"))
    (sampled,) = output.outputs
    token_ids = list(sampled.token_ids)
    logprobs = [of_token[token].logprob for token, of_token in zip(token_ids, sampled.logprobs, strict=True)]
    return Response(prompt, sample, token_ids, logprobs, sampled.finish_reason)


def _sample_from(model: nn.Module, temperature: float, forbidden_ids: list[int]) -> None:
    """Make the model's logits the logprobs that are sampled from: fp32, divided by the temperature, masked, normalised.

    Done in this one place, ahead of vLLM's sampler, it holds for the sampled tokens, for their logprobs and for prompt logprobs,
    which know neither temperature nor masks, and for samplers whose logprobs are those before the temperature (vllm-ascend).
    vLLM is told to report these logits as they are (`logprobs_mode`): its own log_softmax adds the exponentials of a large
    vocabulary one after the other in fp32, and its logprobs are then all too high by the same error (1.9e-5 for 151,936 ids).
    """
    plain = model.compute_logits
    forbidden = torch.tensor(forbidden_ids, dtype=torch.long, device=next(model.parameters()).device)

    def compute_logits(*args: Any, **kwargs: Any) -> Tensor:
        logits_TV = plain(*args, **kwargs).float()
        if temperature != 1.0:
            logits_TV = logits_TV / temperature
        if forbidden_ids:
            logits_TV = logits_TV.index_fill_(-1, forbidden, -torch.inf)
        return logits_TV.sub_(logits_TV.logsumexp(-1, keepdim=True))

    model.compute_logits = compute_logits


def _arguments(cfg: config.Config, shape: dict[str, Any]) -> dict[str, Any]:
    """vLLM's arguments; only those that 0.23.0 (NPU) and 0.32.0 (CPU) share. shape: the model's config.json."""
    longest = cfg.rollout.max_prompt_tokens + cfg.rollout.max_response_tokens
    max_model_len = longest + 1   # score() has the longest response as a prompt, and vLLM insists on one token more
    positions = shape["max_position_embeddings"]
    if max_model_len > positions:
        raise UserError(f"rollout.max_prompt_tokens + max_response_tokens + 1 = {max_model_len} exceeds the model's "
                        f"max_position_embeddings = {positions} ({cfg.model.path}/config.json); lower one of the two")
    return {
        "model": cfg.model.path,
        "skip_tokenizer_init": True,
        # Published in FP8 or not, weights come from the trainer.
        **({"hf_overrides": {"quantization_config": None}} if "quantization_config" in shape else {}),
        "load_format": "dummy",
        "dtype": cfg.run.dtype,
        "seed": cfg.run.seed,
        "distributed_executor_backend": "external_launcher",
        "tensor_parallel_size": cfg.layout.rollout.tensor_parallel_size,
        "enable_expert_parallel": cfg.layout.rollout.enable_expert_parallel,
        "enforce_eager": True,
        "max_model_len": max_model_len,
        "max_num_seqs": cfg.rollout.max_num_seqs,
        # Prompts whole, never in chunks: a seeded request whose prompt is cut crashes vLLM on CPU.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(cfg.rollout.max_num_batched_tokens, max_model_len, cfg.rollout.max_num_seqs),
        "enable_prefix_caching": True,
        "kv_cache_memory_bytes": int(cfg.rollout.kv_cache_gib * 2**30),
        "async_scheduling": False,
        "logprobs_mode": "raw_logits",   # see _sample_from
        "generation_config": "vllm",
        **ARGUMENTS[cfg.run.device],
        **(cpu_vllm.arguments(shape) if cfg.run.device == "cpu" else npu_vllm.arguments(shape) if cfg.run.device == "npu" else {}),
    }


def _owned_experts(experts: int, layout: Layout, rank: int) -> range:
    """vLLM's linear placement: neighbouring experts on neighbouring ranks of the replica; the first take the rest."""
    replica = layout.rollout.group(rank, "tp", "dp")
    place, (share, rest) = replica.index(rank), divmod(experts, len(replica))
    first = place * share + min(place, rest)
    return range(first, first + share + (place < rest))

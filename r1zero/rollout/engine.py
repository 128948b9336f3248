"""Generation by vLLM inside this process, without a server or worker processes. Each rank runs its share of an engine.

The tensor-parallel ranks of an engine receive the same requests and sample the same tokens. Engines that share experts
(data parallel) step together. A response depends only on the weights, the prompt and the seed of its request
(`request_seed`), not on the other requests of the batch, as far as the device's kernels round alike in every batch.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1zero import config
from r1zero.batch import Prompt, Response
from r1zero.distributed import device
from r1zero.distributed.layout import Layout
from r1zero.model import overrides
from r1zero.model.families import read_shape
from r1zero.patches import patched
from r1zero.rollout import cpu, cuda, draw, engine_options, inspect, isolation, models, npu, routing
from r1zero.rollout.arguments import engine_arguments, graph_arguments, records_graphs
from r1zero.rollout.loader_trace import Named, WriteTargets, learn

log = logging.getLogger(__name__)

ADAPTERS: dict[str, Any] = {"cpu": cpu, "cuda": cuda, "npu": npu}
"""run.device -> the module with the parts that differ between devices. All have the same functions."""

OnFinished = Callable[[list[Response]], None]
"""Called with the responses that end in the same step of the engine, while others are still being decoded. They have
their logprobs only when all have ended."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters for a list of prompts."""

    samples: int
    """Number of responses to each prompt."""
    temperature: float
    """0: greedy decoding."""
    max_tokens: int
    """Maximum number of tokens of a response."""
    seed: Callable[[int, int], int]
    """(index of the prompt in the list, number of the response to it) -> 63-bit seed of the response."""


class Engine:
    """This rank's part of its engine. The weights are random until `reload`."""

    def __init__(
        self, cfg: config.Config, layout: Layout, rank: int, *, stop_token_ids: list[int], forbidden_ids: list[int]
    ):
        """Collective over the ranks of layout.rollout, inside the job's world.

        stop_token_ids: a response ends with any of these tokens, and with no other.
        forbidden_ids: ids that stand for no token; they are masked before the softmax, for sampling and for logprobs.
        The model must have passed rollout.engine_limits.check.
        """
        self._cfg, self._stop_token_ids, self._adapter = cfg, stop_token_ids, ADAPTERS[cfg.run.device]
        self._asleep = self._cache_asleep = False
        self._stack = ExitStack()
        model_config = overrides.stated_config(cfg.model)
        arguments = (
            engine_arguments(cfg, model_config) | self._adapter.ARGUMENTS | self._adapter.arguments(model_config)
        )
        mode = self._adapter.graph_mode() if records_graphs(cfg) else None
        if mode is not None:
            arguments |= graph_arguments(cfg.rollout.max_num_seqs, mode)
        if cfg.model.overrides:
            # As a file, so that vLLM treats them exactly as if config.json had stated them.
            folder = self._stack.enter_context(TemporaryDirectory())
            overrides.write(cfg.model, Path(folder))
            arguments["hf_config_path"] = folder
        with device.quiet_imports():
            from vllm import LLM, SamplingParams
            from vllm.engine.arg_utils import EngineArgs
            from vllm.sampling_params import RequestOutputKind

        log.info("start: vLLM is loaded")
        engine_options.check_known(cfg.rollout.engine, (option.name for option in fields(EngineArgs)))
        table = None
        if cfg.train.routing_replay:
            self._dense_layers = read_shape(cfg.model.path, cfg.model.overrides).require_moe().first_dense_layers
            table = None if self._adapter.RETURN_EXPERTS else routing.RouteTable()
            arguments |= {"scheduler_cls": routing.as_scheduler(table)} if table else self._adapter.RETURN_EXPERTS
        self._journal = draw.Journal()
        arguments |= {"logits_processors": [draw.as_logits_processor(self._journal)]}
        arguments = engine_options.merge(arguments, cfg.rollout.engine)
        self._stack.enter_context(self._adapter.while_alive())
        with (
            isolation.preserve_generators(cfg.run.device),
            isolation.environment(layout, rank),
            isolation.as_world(layout.rollout.ranks),
            self._adapter.during_construction(),
            patched({"vllm latent norms": models.set_latent_epsilon_after}),
        ):
            self._llm = LLM(**arguments)
        if table:
            table.bind(self._llm)
        self._llm.apply_model(lambda model: models.return_logprobs(model, cfg.rollout.temperature, forbidden_ids))
        self._sampling = lambda **fields: SamplingParams(
            temperature=0.0,  # greedy; `Draw` makes the token that it draws the likeliest
            detokenize=False,
            ignore_eos=True,
            skip_clone=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **fields,
        )
        self.owned_experts = range(self._llm.llm_engine.model_config.get_num_experts())
        """The routed experts whose weights this rank holds, whole or in part."""
        if cfg.layout.rollout.enable_expert_parallel:
            self.owned_experts = models.owned_experts(len(self.owned_experts), layout, rank)

    def generate(
        self, prompts: list[Prompt], group_size: int, iteration: int, first_position: int, on_finished: OnFinished
    ) -> list[Response]:
        """Returns group_size responses to each prompt, in (prompt, sample) order.

        All tensor-parallel ranks of an engine pass the same prompts and get all responses. first_position: position of
        the first prompt in the run's order of prompts.
        """
        rollout, run_seed = self._cfg.rollout, self._cfg.run.seed
        sampling = Sampling(
            group_size,
            rollout.temperature,
            rollout.max_response_tokens,
            lambda p, sample: request_seed(run_seed, iteration, first_position + p, sample),
        )
        return self._sample(prompts, sampling, on_finished, self._stop_token_ids, self._cfg.train.routing_replay)

    def evaluate(self, prompts: list[Prompt], sampling: "Sampling", on_finished: OnFinished) -> list[Response]:
        """Like `generate`, but with the given sampling parameters, and without effect on later calls."""
        responses = self._sample(prompts, sampling, on_finished, self._stop_token_ids)
        self._drop_prefixes()
        return responses

    def _sample(
        self,
        prompts: list[Prompt],
        sampling: "Sampling",
        on_finished: OnFinished = lambda responses: None,
        stop_token_ids: Sequence[int] = (),
        with_experts: bool = False,
    ) -> list[Response]:
        # The model's logits are already divided by the rollout's temperature.
        temperature = sampling.temperature / self._cfg.rollout.temperature
        names = [(p, sample) for p in range(len(prompts)) for sample in range(sampling.samples)]
        self._journal.clear()
        for number, (p, sample) in enumerate(names):
            self._request(
                f"{p}-{sample}",
                prompts[p].token_ids,
                extra_args=draw.request_arguments(number, sampling.seed(p, sample), temperature),
                max_tokens=sampling.max_tokens,
                stop_token_ids=list(stop_token_ids),
            )
        responses: dict[tuple[int, int], Response] = {}
        for outputs in self._outputs():
            ended = [self._response(output, with_experts) for output in outputs]
            responses |= {(response.prompt, response.sample): response for response in ended}
            on_finished(ended)
        logprobs = self._journal.take([len(responses[name].token_ids) for name in names])
        return [replace(responses[name], logprobs=own) for name, own in zip(names, logprobs, strict=True)]

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        """Returns the logprobs of all tokens of each sequence but the first, from logits like those of `generate`."""
        for i, tokens in enumerate(sequences):
            self._request(str(i), tokens, max_tokens=1, prompt_logprobs=0, flat_logprobs=True)
        scores: dict[int, list[float]] = {}
        for output in chain.from_iterable(self._outputs()):
            pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
            scores[int(output.request_id)] = [of_token[token].logprob for token, of_token in pairs]
        return [scores[i] for i in range(len(sequences))]

    def write_targets(self, tensors: list[Named]) -> WriteTargets:
        """Returns the engine's tensors that hold this rank's weights, for the weights that may be written in place.

        They stay valid as long as the engine exists, but may be written only while `reload` runs.
        """

        def find(model: Any) -> WriteTargets:
            model_config: Any = self._llm.llm_engine.model_config
            return learn(
                model.load_weights, self._adapter.writable_in_place(model, model_config, tensors), model_config.dtype
            )

        (targets,) = self._llm.apply_model(find)
        return targets

    def probe(self, prompts: list[Prompt], tokens: int) -> list[Response]:
        """Returns one response of this many tokens to each prompt. The seeds are fixed, so only the weights matter."""
        seed = self._cfg.run.seed
        sampling = Sampling(1, self._cfg.rollout.temperature, tokens, lambda p, _: request_seed(seed, 0, p, 0))
        responses = self._sample(prompts, sampling)
        self._drop_prefixes()  # so that later calls are not affected
        return responses

    def hidden(self, tokens: list[int]) -> dict[int, Tensor]:
        """Returns the hidden states of one sequence, as described at inspect.recorded."""
        with inspect.recorded(self._model, len(tokens)) as states:
            self.score([tokens])
        return states

    def held(self, name: str, rows: Mapping[str, int]) -> list[Tensor]:
        """Returns this rank's part of a weight as the engine holds it. Arguments and result: see inspect.held."""
        return inspect.held(self._model, name, rows, self.owned_experts)

    def groups(self) -> dict[str, dist.ProcessGroup]:
        """Returns vLLM's process groups of this rank, by purpose."""
        return inspect.groups(self._cfg.layout.rollout.enable_expert_parallel)

    @property
    def _model(self) -> nn.Module:
        return self._llm.apply_model(lambda model: model)[0]

    def reload(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Load new weights: (Hugging Face checkpoint name, full tensor), layer by layer. vLLM takes this rank's share.

        The iterator may run collectives, and may write weights to their `write_targets` instead of yielding them, so it
        is exhausted on every rank. A tensor must not change until the rest of its layer has been yielded. The prefix
        cache, which was computed with the old weights, is dropped.
        """
        self._adapter.load(self._llm, weights)
        if self._cache_asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._cache_asleep = False
        self._drop_prefixes()

    def _drop_prefixes(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache, because requests are still running")

    def sleep(self) -> None:
        """Free the device memory of weights and key-value cache. Does nothing on a CPU, where vLLM cannot sleep."""
        self._asleep = self._adapter.sleep(self._llm) or self._asleep

    def wake(self) -> None:
        """Allocate the weights' memory again at its old addresses. `reload` must follow."""
        if self._asleep:
            self._asleep = False
            # The cache is woken at the end of `reload`, when the trainer's staging buffers are free again.
            self._llm.wake_up(tags=["weights"])
            self._cache_asleep = True

    def close(self) -> None:
        """Release the engine and its groups. Collective over the ranks of layout.rollout."""
        with patched({"vllm shutdown": lambda destroy: lambda group=None: group and destroy(group)}):
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        self._stack.close()

    def _request(self, name: str, tokens: Any, **fields: Any) -> None:
        prompt: Any = {"type": "token", "prompt_token_ids": list(tokens)}
        self._llm.llm_engine.add_request(name, prompt, self._sampling(**fields))

    def _outputs(self) -> Iterator[list[Any]]:
        """Run the engine until no request is left, here and on the engines that share experts with this one.

        Yields the outputs of the requests that end in the same step.
        """
        engine: Any = self._llm.llm_engine
        with isolation.preserve_generators(self._cfg.run.device):
            while engine.has_unfinished_requests():
                if ended := engine.step():
                    yield ended
            # The step that was scheduled before the last response ended, if steps are scheduled ahead.
            while engine.engine_core.engine_core.batch_queue:
                engine.step()

    def _response(self, output: Any, with_experts: bool) -> Response:
        prompt, sample = map(int, output.request_id.split("-"))
        (sampled,) = output.outputs
        experts = None
        if with_experts:
            experts = torch.from_numpy(sampled.routed_experts[:, self._dense_layers :].astype(np.int16))
            if (experts.sort(-1).values.diff(dim=-1) == 0).any():  # zeros, where nothing was recorded
                raise config.UserError("vLLM did not return all tokens' experts; set train.routing_replay to false")
        return Response(prompt, sample, list(sampled.token_ids), [], sampled.finish_reason, experts)


def request_seed(*key: int | str) -> int:
    """Returns the 63-bit seed of one response, which does not depend on its engine or on other requests.

    key: what identifies the response: the run's seed, the iteration, the position of the prompt in the run's order of
    prompts, and the number of the sample.
    """
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1

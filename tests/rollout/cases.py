"""What the ranks of a test world run. Each function is `f(rank, ...)` and returns plain data."""

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from r1zero import config
from r1zero.batch import Prompt, Response
from r1zero.distributed import device, layout
from r1zero.patches import PATCHES
from r1zero.rollout import distribution, draw
from tests import shared_memory
from tests.oracles import tiny_models as models
from tests.without import without


@dataclass(frozen=True)
class Case:
    """One engine's life: made, given each checkpoint in turn, asked."""

    path: str
    """For the shape."""
    loads: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    grid: config.VllmGrid = field(default_factory=config.VllmGrid)
    train_ranks: str = "all"
    dtype: str = "float32"
    group_size: int = 2
    iteration: int = 0
    temperature: float = 0.7
    stop_token_ids: tuple[int, ...] = (7,)
    forbidden_ids: tuple[int, ...] = (500, 501, 511)
    max_prompt_tokens: int = 40
    max_response_tokens: int = 16
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 64
    kv_cache_gib: float = 0.0625
    graph: bool = True
    without: tuple[str, ...] = ()
    """What is left out: see _leave_out."""
    routing_replay: bool = False

    @property
    def cfg(self) -> config.Config:
        return config.Config(
            run=config.Run(dtype=self.dtype, seed=20251125193000),
            model=config.Model(path=self.path),
            layout=config.Layout(train=config.MegatronGrid(ranks=self.train_ranks), rollout=self.grid),
            rollout=config.Rollout(
                temperature=self.temperature,
                max_prompt_tokens=self.max_prompt_tokens,
                max_num_seqs=self.max_num_seqs,
                max_response_tokens=self.max_response_tokens,
                max_num_batched_tokens=self.max_num_batched_tokens,
                kv_cache_gib=self.kv_cache_gib,
                graph=self.graph,
            ),
            train=config.Train(routing_replay=self.routing_replay),
        )


@dataclass(frozen=True)
class Answer:
    responses: list[Response]
    scores: list[list[float]]
    """Of each prompt with its response."""
    still_decoding: list[int]
    """Requests not yet finished at each call of on_finished."""
    preemptions: int
    owned_experts: range
    left_over: dict[str, Any]
    """What the engine changed in its process and on its host."""
    longest_step: int = 0
    """Largest number of tokens that a scheduler step had while generating."""
    computed_tokens: int = 0
    """Tokens of all these steps."""
    cached_tokens: int = 0
    """Prompt tokens of all requests that were found in the prefix cache."""


def prompts(lengths: list[int], first: int = 0) -> tuple[Prompt, ...]:
    """Of the given lengths, rows first, first + 1 .. of some data."""
    return tuple(
        Prompt(first + i, tuple((31 * (first + i) + 7 * j + 11) % 480 + 8 for j in range(n)), "", "")
        for i, n in enumerate(lengths)
    )


def texts(case: Case, answer: Answer) -> list[list[int]]:
    return [list(case.prompts[r.prompt].token_ids) + r.token_ids for r in answer.responses]


def share(case: Case, engines: int, engine: int) -> Case:
    """What one engine of several is asked."""
    count = len(case.prompts) // engines
    return replace(case, prompts=case.prompts[engine * count : (engine + 1) * count])


def answer(rank: int, case: Case) -> Answer | None:
    """Every rank's engine answers its share; None from a rank that does not generate."""
    device.start("cpu", 0)
    lay = layout.carve(case.cfg.layout, dist.get_world_size())
    before = _process()
    if rank not in lay.rollout:
        dist.barrier()  # the world stays until its last engine is done
        return None
    mine = share(case, lay.engines, lay.engine_of(rank))
    with ExitStack() as stack:
        _leave_out(case.without, stack)
        given = _ask(rank, mine, lay)
    after = _process()
    dist.barrier()
    return replace(given, left_over={k: (before[k], after[k]) for k in before if before[k] != after[k]})


def _ask(rank: int, case: Case, lay: layout.Layout) -> Answer:
    from r1zero.rollout.engine import Engine

    engine = Engine(
        case.cfg, lay, rank, stop_token_ids=list(case.stop_token_ids), forbidden_ids=list(case.forbidden_ids)
    )
    try:
        return _use(engine, case)
    finally:
        engine.close()


@contextmanager
def engine_of(rank: int, case: Case) -> Iterator[Any]:
    """An engine of one rank that has loaded the case's checkpoints."""
    from r1zero.rollout.engine import Engine

    device.start("cpu", 0)
    ids = {"stop_token_ids": list(case.stop_token_ids), "forbidden_ids": list(case.forbidden_ids)}
    engine = Engine(case.cfg, layout.carve(case.cfg.layout, 1), rank, **ids)
    _load(engine, case)
    yield engine
    engine.close()


def hidden(rank: int, case: Case, tokens: list[int]) -> dict[int, Any]:
    """Hidden states of a sequence, as arrays."""
    with engine_of(rank, case) as engine:
        return {layer: states.numpy() for layer, states in engine.hidden(tokens).items()}


def evaluate(rank: int, case: Case, temperatures: list[float]) -> list[list[Response]]:
    """Responses of an engine of one rank to an evaluation at each temperature, with the seeds of `answer`."""
    from r1zero.rollout.engine import Sampling, request_seed

    def seed(p: int, sample: int) -> int:
        return request_seed(case.cfg.run.seed, case.iteration, case.prompts[p].row, sample)

    samplings = [Sampling(case.group_size, one, case.max_response_tokens, seed) for one in temperatures]
    with engine_of(rank, case) as engine:
        return [engine.evaluate(list(case.prompts), sampling, lambda responses: None) for sampling in samplings]


def copies(rank: int, case: Case) -> dict[str, bool]:
    """What an engine of one rank keeps of embedding and head after all loads of the case."""
    from r1zero.rollout.engine import Engine

    device.start("cpu", 0)
    with ExitStack() as stack:
        _leave_out(case.without, stack)
        engine = Engine(case.cfg, layout.carve(case.cfg.layout, 1), rank, stop_token_ids=[], forbidden_ids=[])
        stack.callback(engine.close)
        _load(engine, case)
        embedding, head = engine._model.model.embed_tokens, engine._model.lm_head
        return {
            "embedding packed": hasattr(embedding, "cpu_linear"),
            "head packed": hasattr(head, "cpu_linear"),
            "head plain": head.weight.numel() > 0,
        }


def _load(engine: Any, case: Case) -> None:
    from r1zero.rollout.cuda import EXPERT

    for path in case.loads:
        engine.reload(
            (name, tensor)
            for name, tensor in models.weights(path)
            if not (expert := EXPERT.search(name)) or int(expert[1]) in engine.owned_experts
        )


def _use(engine: Any, case: Case) -> Answer:
    _load(engine, case)
    scheduler, preempted = engine._llm.llm_engine.engine_core.engine_core.scheduler, []
    scheduler._preempt_request = _counting(scheduler._preempt_request, preempted)
    steps: list[int] = []
    scheduler.schedule = _measuring(scheduler.schedule, steps)
    seen: list[tuple[int, int]] = []
    decoding: list[int] = []

    def on_finished(responses: list[Response]) -> None:
        seen.extend((response.prompt, response.sample) for response in responses)
        decoding.append(engine._llm.llm_engine.get_num_unfinished_requests())

    with sums_are_kept():
        responses = engine.generate(
            list(case.prompts), case.group_size, case.iteration, case.prompts[0].row, on_finished
        )
    order = [(p, s) for p in range(len(case.prompts)) for s in range(case.group_size)]
    assert [(r.prompt, r.sample) for r in responses] == order and sorted(seen) == order
    given = Answer(responses, [], decoding, len(preempted), engine.owned_experts, {}, max(steps), sum(steps))
    return replace(given, scores=engine.score(texts(case, given)))


@contextmanager
def sums_are_kept() -> Iterator[None]:
    """Fails if in any step the draw's logits are not those that the model returned, with their sums."""
    found: list[bool] = []

    def kept(logprobs_RV: torch.Tensor) -> torch.Tensor | None:
        sums_RM = distribution.kept_sums(logprobs_RV)
        found.append(sums_RM is not None)
        return sums_RM

    with mock.patch.object(draw, "kept_sums", kept):
        yield
    assert found and all(found)


def _counting(function: Any, calls: list[int]) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    return counted


def _measuring(schedule: Any, tokens: list[int]) -> Any:
    def measured(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        tokens.append(output.total_num_scheduled_tokens)
        return output

    return measured


def _leave_out(names: tuple[str, ...], stack: ExitStack) -> None:
    """Rows of r1zero/patches.py, arguments of vLLM, and "tied head": the step of a reload that packs it again."""
    from r1zero.rollout import cpu

    stack.enter_context(without(*(name for name in names if name in PATCHES)))
    arguments = cpu.arguments
    stack.enter_context(
        mock.patch.object(
            cpu,
            "arguments",
            lambda config: {name: value for name, value in arguments(config).items() if name not in names},
        )
    )
    if "tied head" in names:
        stack.enter_context(mock.patch.object(cpu, "repack_tied_head", lambda model: None))


def _process() -> dict[str, Any]:
    import vllm  # noqa: F401  what its import changes is not the engine's doing

    return {
        "environment": {
            k: os.environ.get(k)
            for k in ("LOCAL_WORLD_SIZE", "LD_PRELOAD", "RANK", "VLLM_DIST_IDENT", "VLLM_DP_SIZE", "VLLM_DP_RANK")
        },
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
        "threads": (torch.get_num_threads(), torch.set_num_threads.__name__),
        "world": dist.get_world_size(),
        "shared memory": sorted(shared_memory.left_behind()),
    }

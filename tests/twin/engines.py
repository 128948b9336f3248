"""What the twin's ranks do with an engine. Each function is f(rank, ...) and returns plain data."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from tests.twin import pool, project
from tests.twin.project import Answer, Case


@dataclass(frozen=True)
class Unregistered:
    """A block of the sleeping memory that no parameter and no buffer lies in."""

    tag: str
    names: tuple[str, ...]
    renewed: bool
    """Equal with equal weights, after deep sleeps and other weights."""


@dataclass(frozen=True)
class Life:
    """What an engine did: one answer for each checkpoint it was given, between which it slept."""

    answers: tuple[Answer, ...]
    worker: str
    model: str
    calls: dict[str, int]
    """Of the vendors' operators."""
    awake: int
    asleep: int
    """Bytes of the device that are in use."""
    unregistered: tuple[Unregistered, ...]
    recorded: int
    """Number of graphs."""
    replays: int
    """How often one of them was replayed."""
    ahead: bool
    """Whether steps were scheduled before the one before them had ended."""


def live(rank: int, case: Case, exact: bool = True, ahead: bool = True) -> Life:
    """Load each checkpoint of the case in turn, deeply asleep in between; after each, generate and score. The last is
    the first again. ahead: schedule steps ahead where the engine does so by itself."""
    assert case.loads[0] == case.loads[-1]
    with nullcontext() if ahead else project.nothing_scheduled_ahead():
        engine = project.build_engine(case, rank, dist.get_world_size())
    lay = project.carve(case, dist.get_world_size())
    mine = project.share(case, lay.engines, lay.engine_of(rank))
    model, answers, awake, asleep, first = project.model_of(engine), [], 0, 0, {}
    with exact_prefill() if exact else nullcontext():
        for path in case.loads:
            if answers:
                awake = torch.npu.memory_allocated()
                engine.sleep()
                asleep = torch.npu.memory_allocated()
                engine.wake()
            engine.reload(project.weights_for(engine, path))
            first = first or pool.unregistered(model)
            answers.append(_answer(engine, mine))
    last = pool.unregistered(model)
    rest = tuple(
        Unregistered(
            found.tag, found.names, torch.equal(found.content, last[pointer].content) if pointer in last else False
        )
        for pointer, found in first.items()
    )
    from torch_npu.npu import graphs

    life = Life(
        tuple(answers),
        type(project.worker_of(engine)).__name__,
        type(model).__name__,
        calls(),
        awake,
        asleep,
        rest,
        len(graphs.RECORDED),
        len(graphs.REPLAYS),
        project.core_of(engine).batch_queue is not None,
    )
    engine.close()
    return life


@dataclass(frozen=True)
class Inspected:
    """What the engine computes with, against the checkpoint it was given."""

    unlike: tuple[str, ...]
    """HF names of tensors of which one of the places where the engine keeps them has something else."""
    places: int
    hidden: dict[int, Tensor]
    """Of one sequence: see the engine."""


def inspect(rank: int, case: Case, tokens: list[int]) -> Inspected:
    """After a deep sleep and a reload."""
    engine = project.build_engine(case, rank, dist.get_world_size())
    with exact_prefill():
        for path in case.loads:
            engine.reload(project.weights_for(engine, path))
            hidden = {layer: states.cpu() for layer, states in engine.hidden(tokens).items()}
            engine.sleep()
            engine.wake()
        engine.reload(project.weights_for(engine, path))
        weights = dict(project.weights_for(engine, path))
        rows = {name: len(tensor) for name, tensor in weights.items()}
        held = {name: engine.held(name, rows) for name in weights}
    unlike = [
        name
        for name, places in held.items()
        if not places
        or any(
            found.shape != weights[name].shape or float((found.cpu() - weights[name]).abs().max()) > 1e-6
            for found in places
        )
    ]
    engine.close()
    return Inspected(tuple(unlike), sum(map(len, held.values())), hidden)


def calls() -> dict[str, int]:
    import torch_npu

    return dict(torch_npu.operators.CALLS)


def _answer(engine: Any, case: Case) -> Answer:
    with project.preemptions(engine) as preempted, project.cached_tokens(engine) as cached, project.sums_are_kept():
        responses = engine.generate(
            list(case.prompts), case.group_size, case.iteration, case.prompts[0].row, lambda responses: None
        )
    given = Answer(responses, [], [], len(preempted), engine.owned_experts, {}, cached_tokens=sum(cached))
    return replace(given, scores=engine.score(project.texts(case, given)))


@contextmanager
def exact_prefill() -> Iterator[None]:
    """vllm-ascend's prefill of latent attention turns fp32 into bfloat16, the one type its kernel knows (mla_v1.py,
    _forward_prefill). For a comparison in fp32 its module finds fp32 under that name."""
    from vllm_ascend.attention import mla_v1

    class Torch(ModuleType):
        bfloat16 = torch.float32

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    with mock.patch.object(mla_v1, "torch", Torch("torch")):
        yield

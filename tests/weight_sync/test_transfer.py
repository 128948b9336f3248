"""The compiled reshard on gloo, 8 forked processes, against whole tensors and against the generic path.

python -m pytest tests/weight_sync/test_transfer.py
"""

import multiprocessing
import socket
import traceback
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.distributed.layout import Layout
from r1zero.model.shape import Shape
from r1zero.model.weights import Weight
from r1zero.weight_sync import transfer
from r1zero.weight_sync.routes import Routes, axis, required_span
from tests.oracles import gathered_weights as generic
from tests.weight_sync.shapes import CASES

CPU = torch.device("cpu")
WORLD = 8


def whole(weight: Weight, dtype: torch.dtype) -> Tensor:
    """A tensor that belongs to the weight's name alone, on whatever rank it is made."""
    generator = torch.Generator().manual_seed(sum(ord(c) * 131**i for i, c in enumerate(weight.name)) % 2**63)
    return torch.randn(weight.shape, generator=generator).to(torch.float32 if weight.fp32 else dtype)


def reader(compiled: transfer.Compiled, dtype: torch.dtype) -> transfer.Read:
    def read(weight: Weight) -> Tensor:
        part = compiled.routes.held(weight)[compiled.rank]
        return whole(weight, dtype).narrow(axis(weight), part.first, part.end - part.first)

    return read


def make(
    shape: Shape, layout: Layout, expert_parallel: bool, rank: int, dtype: torch.dtype = torch.bfloat16
) -> transfer.Compiled:
    return transfer.compile_sync(
        Routes(layout, shape, expert_parallel, "cpu"), rank, dtype=dtype, device=CPU, staging_bytes=20_000
    )


class Held:
    """What the generic path reads of a rank's part: in the job, a view of megatron-core's parameter (mapping.Local)."""

    def __init__(self, tensor: Tensor):
        self.parameter = tensor

    def tensor(self) -> Tensor:
        return self.parameter


def stream_is_right(shape: Shape, layout: Layout, expert_parallel: bool, rank: int) -> None:
    """Each rank gets exactly what its engine keeps, equal to the whole tensor and to the generic path, bit for bit."""
    for dtype in (torch.bfloat16, torch.float32):
        compiled = make(shape, layout, expert_parallel, rank, dtype)
        read = reader(compiled, dtype)
        local = {w.name: Held(read(w)) for w in compiled.routes.weights if rank in compiled.routes.held(w)}
        receivers = generic.engine_receivers(layout.rollout, shape, expert_parallel)
        oracle = dict(generic.stream(local, shape, layout.train, receivers, dtype))
        got = dict(transfer.stream(compiled, read, {}, verify=True))
        by_name = {weight.name: weight for weight in compiled.routes.weights}
        assert set(got) <= set(oracle), "an engine was sent what it does not keep"
        kept = 0
        for name, tensor in oracle.items():
            weight = by_name[name]
            span = required_span(
                weight, shape, layout.rollout, compiled.routes.distribution, rank
            )  # the generic path sends nothing to others
            if span.first == span.end:
                continue
            mine = [
                t.narrow(axis(weight), span.first, span.end - span.first)
                for t in (got[name], tensor, whole(weight, dtype))
            ]
            assert got[name].shape == weight.shape and got[name].dtype == mine[2].dtype
            assert torch.equal(mine[0], mine[1]) and torch.equal(mine[0], mine[2]), name
            kept += 1
        assert kept == len(got)


def pieces_cover_each_unit_once(shape: Shape, layout: Layout, expert_parallel: bool, rank: int) -> None:
    compiled = make(shape, layout, expert_parallel, rank)
    places = {
        number: (torch.zeros(compiled.routes.weights[number].shape, dtype=torch.bfloat16), [])
        for number in compiled.wanted
    }
    numbers = {compiled.routes.weights[number].name: number for number in places}

    for weight, span, tensor in transfer.pieces(compiled, reader(compiled, torch.bfloat16), verify=True):
        place, spans = places[numbers[weight.name]]
        place.narrow(axis(weight), span.first, span.end - span.first).copy_(tensor)
        spans.append(span)
    for number, (place, spans) in places.items():
        weight, wanted = compiled.routes.weights[number], compiled.wanted[number]
        edges = [wanted.first, *(span.end for span in sorted(spans))]
        assert [span.first for span in sorted(spans)] == edges[:-1] and edges[-1] == wanted.end
        mine = whole(weight, torch.bfloat16).bfloat16().narrow(axis(weight), wanted.first, wanted.end - wanted.first)
        assert torch.equal(place.narrow(axis(weight), wanted.first, wanted.end - wanted.first), mine)


def a_flipped_bit_is_named(shape: Shape, layout: Layout, expert_parallel: bool, rank: int) -> None:
    """One bit changes on its way to rank 5: the checksum on that rank names the tensor, and only there."""
    compiled = make(shape, layout, expert_parallel, rank)
    real, calls = dist.all_to_all_single, []

    def flip(output: Tensor, *args: Any, **kwargs: Any) -> None:
        real(output, *args, **kwargs)
        if rank == 5 and output.dtype == torch.bfloat16 and output.numel() and not calls:
            calls.append(None)
            output.view(torch.int16)[7] ^= 1

    transfer.dist.all_to_all_single = flip
    try:
        for _ in transfer.pieces(
            replace(compiled, tasks=compiled.tasks[:1]), reader(compiled, torch.bfloat16), verify=True
        ):
            pass
        assert rank != 5, "the flipped bit went unseen"
    except transfer.ChecksumError as error:
        assert rank == 5 and "model." in str(error) and "arrived at rank 5" in str(error)
    finally:
        transfer.dist.all_to_all_single = real


CHECKS = {
    f"{check.__name__}: {name}": (check, name)
    for name in CASES
    for check in (stream_is_right, pieces_cover_each_unit_once)
}
CHECKS["a_flipped_bit_is_named: moe, ep4 to ep4"] = (a_flipped_bit_is_named, "moe, ep4 to ep4")


def rank_main(rank: int, port: int, report: Any) -> None:
    """Runs the checks in order up to the first that fails here; the other ranks then lose their connection and end
    too."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    for title, (check, name) in CHECKS.items():
        shape, layout, expert_parallel = CASES[name]
        try:
            check(
                shape, replace(layout, size=WORLD), expert_parallel, rank
            )  # smaller layouts leave the last ranks idle
        except Exception:
            report.send((title, traceback.format_exc()))
            return
        report.send((title, ""))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[str]]:
    """Title -> what each rank said of it, "" for success; shorter where ranks did not get there."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("fork")  # torch is imported once, here
    ends, ranks = [], []
    for rank in range(WORLD):
        end, other = context.Pipe(duplex=False)
        ranks.append(context.Process(target=rank_main, args=(rank, port, other), daemon=True))
        ranks[-1].start()
        other.close()
        ends.append(end)
    said: dict[str, list[str]] = {title: [] for title in CHECKS}
    for end, process in zip(ends, ranks, strict=True):
        try:
            while end.poll(300):
                title, error = end.recv()
                said[title].append(error)
        except EOFError:
            process.join()
    return said


@pytest.mark.parametrize("title", CHECKS)
def test_reshard(title: str, outcomes: dict[str, list[str]]) -> None:
    assert outcomes[title] == [""] * WORLD, next(
        (error for error in outcomes[title] if error), "ranks did not get there"
    )

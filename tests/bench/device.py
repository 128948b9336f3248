"""Checks and times the kernels of a device: python -m tests.bench.device --device cuda [--kernels KIND] [--small]

First, values and gradients of each kernel against plain torch on the CPU, in fp32 and bf16: the largest relative error
of a result or gradient, in the Euclidean norm, and that of plain torch in the same type; the exact ones are in fp64.
Then the time of forward and backward pass in bf16, with the sizes of Qwen2.5-7B, against plain torch on the same
device, and on CUDA and NPU the highest memory beyond the arguments. The status is 1 if an error is larger than
rounding.

--kernels: those of another kind than the device's, without attention. --small: sizes for a CPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from r1zero.distributed import device
from r1zero.model.kernels.interface import Kernels

ROUNDS, WARM_UP = 10, 3
OPTIONAL = {"rotary": "rotate", "weighted swiglu": "weighted_swiglu", "permutation": "permute"}
"""Cases of kernels that a kind of device need not have, beside those of experts."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=device.DEVICES, required=True)
    parser.add_argument("--kernels", choices=device.DEVICES)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(arguments)
    device.start(options.device, 0)
    from r1zero.model.kernels.choice import kernels_of
    from tests.model import kernel_cases

    kernels = kernels_of(options.kernels or options.device)
    is_own = options.kernels in (None, options.device)
    if not is_own:  # it may need an operator that torch has for its own device only
        kernels = replace(kernels, accumulate=None)

    def runs(case: str) -> bool:
        kernel = "grouped_linear" if "experts" in case else OPTIONAL.get(case, "attend")
        return getattr(kernels, kernel) is not None and (is_own or "attention" not in case)

    table, good = errors(kernels, list(filter(runs, kernel_cases.CASES)), options.device)
    Console().print(table)
    timed = {name: make(kernels) for name, make in timed_cases(options.small).items() if runs(name)}
    Console().print(speeds(timed, options.device))
    return not good


def errors(kernels: Kernels, names: list[str], kind: str) -> tuple[Table, bool]:
    """Returns the table, and whether all errors are those of rounding."""
    from tests.model import kernel_cases

    table, good = Table("kernel", "type", "error", "of plain torch", "verdict"), True
    for name in names:
        for dtype in (torch.float32, torch.bfloat16):
            found = kernel_cases.compare(kernels, name, kind, dtype)
            right = found.are_of_rounding(dtype)
            good &= right
            verdict = "rounding" if right else "[bold]larger than rounding[/bold]"
            table.add_row(name, str(dtype).removeprefix("torch."), f"{found.ours:.1e}", f"{found.plain:.1e}", verdict)
    if kernels.accumulate:
        found, limit = weight_gradient_error(kernels, kind), 2.0**-9 if kind == "cpu" else 1e-6
        good &= found < limit  # on a CPU the product is rounded before it is added
        table.add_row("gradient of a weight", "bfloat16", f"{found:.1e}", "", "rounding" if found < limit else "wrong")
    return table, good


def weight_gradient_error(kernels: Kernels, kind: str) -> float:
    """The largest relative error of an fp32 sum to which the product of two 16-bit matrices is added."""
    from tests.model.kernel_cases import values

    assert kernels.accumulate
    worst = 0.0
    for rows, inner, outputs in ((64, 48, 32), (1023, 64, 20_011)):  # a linear layer; the output layer
        x, gradient = values(rows, inner).bfloat16(), values(rows, outputs, seed=1).bfloat16()
        total = values(outputs, inner, seed=2).float()
        exact = total.double() + gradient.double().t() @ x.double()
        moved = total.to(kind)
        kernels.accumulate(x.to(kind), gradient.to(kind), moved)
        worst = max(worst, float((moved.cpu().double() - exact).norm() / exact.norm()))
    return worst


def timed_cases(small: bool) -> dict[str, Callable[[Kernels], Any]]:
    """Cases with the sizes of Qwen2.5-7B, and the experts of Qwen3-30B-A3B."""
    from tests.model import kernel_cases as cases

    rows, shrink = (256, 8) if small else (8192, 1)
    hidden, inner, width, vocabulary = 3584 // shrink, 18944 // shrink, 128 // shrink, 152064 // shrink
    own, shared = rows // 16, [0, 0, rows // 16, rows // 16] * 4
    return {
        "norm": partial(cases.norm, rows=rows, width=hidden),
        "swiglu": partial(cases.swiglu, rows=rows, width=inner),
        "rotary": partial(cases.rotary, rows=rows, heads=28, width=width),
        "attention": partial(cases.attention, heads=(28, 4, width, width), lengths=[own] * 16, shared=[0] * 16),
        "attention over shared prompts": partial(
            cases.attention, heads=(28, 4, width, width), lengths=[own] * 16, shared=shared
        ),
        "weighted swiglu": partial(cases.weighted_swiglu, rows=4 * rows, width=768 // shrink),
        "experts": partial(cases.experts, counts=[rows // 4] * 16, width=2048 // shrink, inner=1536 // shrink),
        "permutation": partial(cases.permutation, rows=rows, width=2048 // shrink, experts=128),
        "log-probabilities": partial(cases.log_probabilities, rows=rows // 4, width=hidden, vocabulary=vocabulary),
    }


def speeds(cases: dict[str, Any], kind: str) -> Table:
    from tests.model.kernel_cases import on_device

    table = Table("kernel", "ms", "plain torch, ms", "speed", "memory, MB", "plain torch, MB")
    for name, case in cases.items():
        moved, others = on_device(case, kind, torch.bfloat16)
        ours, plain = (measure(partial(f, *moved, *others), moved, kind) for f in (case.ours, case.plain))
        memory = [f"{number / 1e6:.0f}" if number else "" for number in (ours[1], plain[1])]
        table.add_row(name, f"{ours[0]:.3f}", f"{plain[0]:.3f}", f"{plain[0] / ours[0]:.2f}", *memory)
    return table


def measure(function: Callable[[], Tensor], learned: list[Tensor], kind: str) -> tuple[float, int]:
    """Returns the median of the milliseconds of forward and backward pass, and the highest number of bytes beyond those
    before; 0 on a CPU."""
    on_card = None if kind == "cpu" else device.module(kind)
    before, seconds = on_card.memory_allocated() if on_card else 0, []
    gradient = torch.ones_like(function())
    for number in range(WARM_UP + ROUNDS):
        if on_card:
            on_card.synchronize()
            on_card.reset_peak_memory_stats()
        start = time.perf_counter()
        torch.autograd.grad(function(), learned, gradient)
        if on_card:
            on_card.synchronize()
        seconds += [time.perf_counter() - start] if number >= WARM_UP else []
    return 1000 * statistics.median(seconds), on_card.max_memory_allocated() - before if on_card else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

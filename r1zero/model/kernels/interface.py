"""What the model's layers ask of a device. The functions of kernels/cpu.py are the reference: those of the other
devices are tested against them.

Shapes: T tokens of packed sequences, h query heads, g key and value heads, d width of a query, e width of a value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Kernels:
    """The functions and settings of one kind of device. None stands for megatron-core's own function."""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """(x, weight, epsilon) to x divided by its root mean square over the last axis, times weight."""
    swiglu: Callable[[Tensor], Tensor]
    """(..., 2 F), the gate's half first, to (..., F): silu(gate) * up. A plain function, which megatron-core's
    build_module returns as it is."""
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """(x, cosines, sines) to x * cosines + r(x) * sines, where r swaps the halves of the last axis and negates the new
    first half. x (T, h, d); cosines and sines (T, 1, d), of the same type."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of megatron-core's TransformerConfig that differ from those of the CPU."""

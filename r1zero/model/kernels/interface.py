"""What the model's layers ask of a device. All devices' functions are tested against plain torch, with autograd's own
derivatives (tests/model/kernel_cases.py).

Shapes: T tokens of packed sequences, h query heads, g key and value heads, d width of a query, e width of a value;
R rows, one for each token and each of its experts, sorted by expert; X experts of a rank.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps

from torch import Tensor

from r1zero.model.packing import PackedSequences

GroupedLinear = Callable[[Tensor, list[Tensor], Tensor], Tensor]
"""(rows (R, in), X weights (out, in), counts (X,)) to (R, out): the first counts[0] rows times the transposed first
weight, and so on. counts: int64, on the host or the device; their sum is R, which may be 0."""
AddWeightGradient = Callable[[Tensor, Tensor, Tensor], None]
"""(input (T, in), gradient of the output (T, out), total (out, in) in fp32), the first two in fp32 or a 16-bit type:
adds the gradient of a linear layer's weight to the total, in place."""


@dataclass(frozen=True)
class Kernels:
    """The functions and settings of one kind of device. None stands for megatron-core's own function."""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """(x, weight, epsilon) to x divided by its root mean square over the last axis, times weight."""
    swiglu: Callable[[Tensor], Tensor]
    """(..., 2 F), the gate's half first, to (..., F): silu(gate) * up. A plain function, which megatron-core's
    build_module returns as it is."""
    attend: Callable[[Tensor, Tensor, Tensor, float, PackedSequences], Tensor]
    """(q (T, h, d), k (T, g, d), v (T, g, e), scale of the scores, the pack) to (T, h * e): causal attention within
    each sequence and the tokens that it continues. g divides h, and e is at most d."""
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """(x, cosines, sines) to x * cosines + r(x) * sines, where r swaps the halves of the last axis and negates the new
    first half. x (T, h, d); cosines and sines (T, 1, d), of the same type."""
    grouped_linear: GroupedLinear | None = None
    weighted_swiglu: Callable[[Tensor, Tensor], Tensor] | None = None
    """(rows (R, 2 F), weights (R, 1) in any floating type) to (R, F) in the rows' type: swiglu of each row times its
    weight. For experts that are multiplied together; None: swiglu and a product."""
    permute: Callable[..., tuple[Tensor, Tensor | None, Tensor]] | None = None
    unpermute: Callable[..., Tensor] | None = None
    """megatron-core's functions of these names in moe_utils, without tokens that are dropped or padded. What permute
    returns last is for unpermute only."""
    accumulate: AddWeightGradient | None = None
    """Without it the product is made first, in the type of the layer's input."""
    shared_expert_overlap: bool = False
    """Whether shared experts are computed on a stream of their own while tokens travel to the routed ones."""

    def described(self) -> str:
        """Returns each function with the module that it is from."""
        functions = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "shared_expert_overlap"}
        modules = {name: function.__module__ if function else "megatron-core" for name, function in functions.items()}
        return ", ".join(f"{name} from {module}" for name, module in modules.items())


def extend_to_fp32(in_16_bits: AddWeightGradient) -> AddWeightGradient:
    """Returns a function that uses `in_16_bits` for 16-bit types, and for fp32 torch's own operator, which every device
    has."""

    @wraps(in_16_bits)
    def add(inputs: Tensor, gradient: Tensor, total: Tensor) -> None:
        if inputs.dtype == total.dtype:
            total.addmm_(gradient.t(), inputs)
        else:
            in_16_bits(inputs, gradient, total)

    return add

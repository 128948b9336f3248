"""What of model/kernels/cuda.py runs on a CPU: values and gradients against plain torch. The kernels of the NPU are
tested in tests/twin/test_kernels.py.

    python -m pytest tests/model/test_kernels.py
"""

import pytest
import torch

from r1zero.model.kernels.choice import kernels_of
from tests.model import kernel_cases

CUDA = ("norm", "norm of heads", "swiglu", "swiglu of three axes", "experts", "experts without rows")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CUDA)
def test_a_function_for_cuda_computes_what_plain_torch_does(name: str, dtype: torch.dtype) -> None:
    assert kernel_cases.compare(kernels_of("cuda"), name, "cpu", dtype).are_of_rounding(dtype)

"""The kernels of a kind of device."""

from r1zero.model.kernels import cpu, cuda, npu
from r1zero.model.kernels.interface import Kernels

KERNELS = {"cpu": cpu.KERNELS, "cuda": cuda.KERNELS, "npu": npu.KERNELS}


def kernels_of(kind: str) -> Kernels:
    """Returns the kernels for run.device."""
    return KERNELS[kind]

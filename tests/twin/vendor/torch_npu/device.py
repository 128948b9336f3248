"""The compiled device (tests/twin/device), loaded and started: torch then knows devices of the kind "npu"."""

import ctypes
import os

import torch

LIBRARY = os.environ["TWIN_DEVICE"]
DEVICES = int(os.environ.get("TWIN_DEVICES", "1"))
BYTES = int(float(os.environ.get("TWIN_GIB", "4")) * 2**30)

torch.ops.load_library(LIBRARY)
library = ctypes.CDLL(LIBRARY)
operators = torch.ops.npu_twin

for _name, _arguments in {
    "twin_start": 2,
    "twin_set_device": 1,
    "twin_pool": 1,
    "twin_sleep": 1,
    "twin_wake": 1,
    "twin_device": 0,
    "twin_total": 0,
    "twin_held": 0,
    "twin_peak": 0,
    "twin_reset_peak": 0,
}.items():
    getattr(library, _name).argtypes = [ctypes.c_int64] * _arguments
    getattr(library, _name).restype = ctypes.c_int64
library.twin_start(DEVICES, BYTES)
torch.utils.rename_privateuse1_backend("npu")


def index(device: "torch.device | str | int | None" = None) -> int:
    """Of a device however it is named; without a number, of the current one."""
    if isinstance(device, int):
        return device
    named = None if device is None else torch.device(device).index
    return library.twin_device() if named is None else named

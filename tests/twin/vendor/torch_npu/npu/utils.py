"""torch_npu.npu.utils."""

from typing import Any

from torch_npu.device import DEVICES, index, library


def set_device(device: Any) -> None:
    wanted = index(device)
    if not 0 <= wanted < DEVICES:
        raise RuntimeError(f"npu:{wanted} does not exist; this host has {DEVICES}")
    library.twin_set_device(wanted)


def _get_device_index(device: Any, optional: bool = False, allow_cpu: bool = False) -> int:
    return index(device)

"""torch_npu._C: the compiled module's names."""

from typing import Any

_NPUTaskGroupHandle = object


def _weak_ref_tensor(tensor: Any) -> Any:
    return tensor


def _npu_hostEmptyCache() -> None: ...

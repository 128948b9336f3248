"""torch_npu._init.patches.monkey_patches."""

import functools
import types
from typing import Any

import torch


def _apply_patches(monkey_patches: list[tuple[str, Any]]) -> None:
    """Put each object at its dotted name below torch; a module gives all its public names to the module that is
    there."""
    for name, patch in monkey_patches:
        *path, last = name.split(".")
        owner = functools.reduce(getattr, path, torch)
        if not isinstance(patch, types.ModuleType):
            setattr(owner, last, patch)
            continue
        for public, value in vars(patch).items():
            if not public.startswith("_") and not isinstance(value, types.ModuleType):
                setattr(getattr(owner, last), public, value)

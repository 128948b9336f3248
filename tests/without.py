"""One patch less: shows what a row of r1zero/patches.py is for."""

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from r1zero import patches


def without(*names: str) -> AbstractContextManager[Any]:
    """Inside, the named rows are not applied, and everything else is."""
    unknown = set(names) - set(patches.PATCHES)
    assert not unknown, unknown
    apply = patches.apply
    return mock.patch.object(
        patches, "apply", lambda makers: apply({name: make for name, make in makers.items() if name not in names})
    )

"""The vendors' operators: every one of them is defined with the vendor's own signature, and what has no stand-in says
so when called.

Signatures are read from the vendors' binaries when the environment is made (tests/twin/schemas.py); none is written
down here. Stand-ins are ordinary torch operations, so that those without side effects are differentiable."""

import functools
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
STAND_INS: dict[str, dict[str, Function]] = {"npu": {}, "atb": {}, "_C_ascend": {}}
"""By the namespace of torch.ops, and the operator's name; with its overload where only that is meant."""
CALLS: Counter[str] = Counter()
_libraries: list[torch.library.Library] = []  # a library's definitions go with it


def stand_in(space: str, name: str = "") -> Callable[[Function], Function]:
    """Register what an operator computes; the name is the function's own unless another is given."""

    def put(function: Function) -> Function:
        STAND_INS[space][name or function.__name__] = function
        return function

    return put


def refuse(operator: str, **given: Any) -> None:
    """Raise for arguments that ask for more than the stand-in does: each must be absent, zero or empty."""
    for name, value in given.items():
        absent = (
            value is None
            or (isinstance(value, (list, tuple, str)) and not value)
            or (isinstance(value, (int, float)) and value == 0)
        )
        if not absent:
            raise NotImplementedError(f"the twin's {operator} does not know {name} = {value!r}")


@functools.cache
def signatures() -> dict[str, dict[str, str]]:
    """Namespace -> operator with overload -> schema."""
    return json.loads(Path(os.environ["TWIN_SCHEMAS"]).read_text(encoding="utf-8"))


@functools.cache
def names(space: str) -> frozenset[str]:
    """Operators of a namespace, without overloads."""
    return frozenset(name.partition(".")[0] for name in signatures()[space])


def define(space: str) -> None:
    """Define every operator of a namespace."""
    library = torch.library.Library(space, "FRAGMENT")
    _libraries.append(library)
    for name, schema in signatures()[space].items():
        parsed = torch._C.parse_schema(schema)
        library.define(schema)
        plain = name.partition(".")[0]
        function = (
            STAND_INS[space].get(name)
            or (None if name.endswith(".out") else STAND_INS[space].get(plain))
            or _missing(space, name)
        )
        changes = any(argument.alias_info is not None and argument.alias_info.is_write for argument in parsed.arguments)
        key = "CompositeImplicitAutograd" if space == "npu" and not changes else "PrivateUse1"
        library.impl(name, _checked(f"{space}::{plain}", function), key)


def _missing(space: str, name: str) -> Function:
    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError(f"the twin has no stand-in for {space}::{name}")

    return missing


def _checked(name: str, function: Function) -> Function:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        CALLS[name] += 1
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.device.type == "cpu" and value.dim():
                raise RuntimeError(f"{name} was given a tensor of the host")
        return function(*args, **kwargs)

    return call

"""The operators' signatures as they stand in the vendors' shared libraries."""

import re
from zipfile import ZipFile

from tests import wheels

ASCEND, _, TORCH_NPU = wheels.PINNED
LIBRARIES = {
    "npu": (TORCH_NPU, r"torch_npu/lib/libtorch_npu\.so"),
    "atb": (TORCH_NPU, r"torch_npu/lib/libop_plugin_atb\.so"),
    "_C_ascend": (ASCEND, r"vllm_ascend/vllm_ascend_C\..*\.so"),
}
"""Namespace of torch.ops -> wheel, and the library that registers its operators."""

_TEXT = re.compile(rb"(?<=\0)[\x20-\x7e]{12,8000}(?=\0)")
_SCHEMA = re.compile(r"(?:\w+::)?(?P<schema>(?P<name>\w+(?:\.\w+)?)\(.*\)\s*->\s*.+)", re.S)


def read(requirement: str, library: str) -> dict[str, str]:
    """Operator with its overload -> schema, of one library of a wheel. Skips the test where the wheel cannot be had."""
    archive: ZipFile = wheels.wheel(requirement)
    (member,) = [name for name in archive.namelist() if re.fullmatch(library, name)]
    found: dict[str, str] = {}
    for text in _TEXT.finditer(archive.read(member)):
        match = _SCHEMA.fullmatch(text[0].decode().strip())
        if match and "Tensor" in match["schema"]:
            found.setdefault(match["name"], re.sub(r"\s+", " ", match["schema"]))
    return found


def parsed(schemas: dict[str, str]) -> dict[str, str]:
    """Those that torch can read: of types of its own alone."""
    import torch

    def is_readable(schema: str) -> bool:
        try:
            torch._C.parse_schema(schema)
        except RuntimeError:
            return False
        return True

    return {name: schema for name, schema in schemas.items() if is_readable(schema)}


def all_of_them() -> dict[str, dict[str, str]]:
    """Namespace -> operator with its overload -> schema."""
    return {space: parsed(read(*where)) for space, where in LIBRARIES.items()}

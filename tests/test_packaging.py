"""pyproject.toml names every module and file of the package, and programs that exist.

python -m pytest tests/test_packaging.py
"""

import fnmatch
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import tomli

from r1zero.data import templates

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS: dict[str, str] = PROJECT["project"]["scripts"]
SETUPTOOLS: dict[str, Any] = PROJECT["tool"]["setuptools"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_console_script_is_a_function_that_needs_no_argument(script: str) -> None:
    module, _, function = SCRIPTS[script].partition(":")
    assert module in SETUPTOOLS["py-modules"]
    inspect.signature(getattr(importlib.import_module(module), function)).bind()


def test_every_program_has_a_console_script() -> None:
    assert {f"r1zero-{module}": f"{module}:main" for module in SETUPTOOLS["py-modules"]} == SCRIPTS


def folder(package: str) -> Path:
    return ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))


def test_every_module_is_packaged() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == set(SETUPTOOLS["py-modules"])
    found = {path.parent for path in (ROOT / "r1zero").rglob("*.py")}
    named = {folder(package) for package in SETUPTOOLS["packages"] if package not in SETUPTOOLS["package-dir"]}
    assert found == named


def test_every_other_file_of_the_package_is_packaged() -> None:
    files = [path for path in (ROOT / "r1zero").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    data = SETUPTOOLS["package-data"]
    patterns = {path: data.get(".".join(path.relative_to(ROOT).parent.parts), []) for path in files}
    assert files
    assert [path for path in files if not any(fnmatch.fnmatch(path.name, one) for one in patterns[path])] == []


def test_the_templates_are_packaged_where_an_installed_package_looks_for_them() -> None:
    """In the repository the file is in configs/model/; the installed package has it in a folder of its own."""
    assert templates.SHIPPED == ROOT / "configs/model/templates.json"
    place = templates._INSTALLED.relative_to(ROOT)
    package = ".".join(place.parent.parts)
    assert package in SETUPTOOLS["packages"] and not (ROOT / place).exists()
    assert folder(package) / place.name == templates.SHIPPED
    assert any(fnmatch.fnmatch(place.name, one) for one in SETUPTOOLS["package-data"][package])

"""The house: who may import whom, one door per vendor, the length budget, and what is not done here."""

import ast
import dataclasses
import statistics
import typing
from pathlib import Path

import pytest

from r1zero import config

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "r1zero").rglob("*.py"))
ENTRIES = [ROOT / name for name in ("train.py", "convert.py", "preprocess.py") if (ROOT / name).exists()]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE + ENTRIES}

# Each module or folder of the package, and what of ours it may import. Imports descend: a name may list only names
# above it.
MAY_IMPORT = {
    "config": "",
    "division": "",
    "batch": "division",
    "grpo": "",
    "logprobs": "",
    "patches": "config",
    "distributed": "batch config division patches",
    "reward": "config",
    "data": "batch config reward",
    "miniature": "config reward",
    "model": "config distributed patches",
    "watchdog": "config distributed",
    "grading": "batch config data distributed grpo reward",
    "objective": "batch config grpo",
    "shaping": "batch config distributed grading grpo objective",
    "groups": "batch config distributed division grading shaping",
    "policy": "batch config division logprobs model objective",
    "rollout": "batch config distributed model patches",
    "observability": "batch config distributed grading grpo objective",
    "evaluation": "batch config data distributed grading observability reward rollout",
    "weight_sync": "config distributed model rollout",
    "checkpoint": "config distributed model observability",
    "plan": "config distributed division model rollout weight_sync",
    "roles": "batch checkpoint config distributed model policy rollout weight_sync",
    "reference": "batch config distributed division roles",
    "guard": "batch config data distributed model policy roles weight_sync",
    "run_checkpoints": "checkpoint config data evaluation guard roles",
    "trainer": "batch checkpoint config data distributed evaluation grading groups grpo guard model observability "
    "reference reward roles run_checkpoints shaping weight_sync",
    "report": "config reward",
    "samples": "config observability reward",
    "preflight": "config distributed model observability plan trainer weight_sync",
}

DOORS = {
    "megatron": ("model", "policy", "checkpoint/training", "checkpoint/state_shards"),
    "vllm": ("rollout",),
    "safetensors": ("checkpoint/hf_files",),
    "transformers": ("data/tokenizer", "miniature"),
    "tensorboard": ("observability/board",),
    "latex2mathml": ("report/formulas",),
    "matplotlib": ("observability/plots", "report/charts"),
    "math_verify": ("reward/equality",),
    "latex2sympy2_extended": ("reward/equality",),
    "sympy": ("reward/equality",),
    "mpi4py": ("distributed/world",),
    "torch_npu": (),  # device names its vendors in a table
    "mindspeed": (),
}


def place(path: Path) -> str:
    return path.relative_to(ROOT / "r1zero").with_suffix("").as_posix() if path in PACKAGE else path.stem


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_the_import_table_descends():
    names = list(MAY_IMPORT)
    for i, name in enumerate(names):
        assert set(MAY_IMPORT[name].split()) <= set(names[:i]), name


@pytest.mark.parametrize("path", PACKAGE, ids=place)
def test_a_module_imports_only_what_the_table_grants(path):
    parts = place(path).split("/")
    if parts == ["__init__"]:
        return
    ours = {name.split(".")[1] for name in imports(TREES[path]) if name.startswith("r1zero.")} - {parts[0]}
    assert ours <= set(MAY_IMPORT[parts[0]].split()), f"{place(path)} imports {sorted(ours)}"


def test_nobody_imports_an_entry_point():
    for path, tree in TREES.items():
        assert not {"train", "convert", "preprocess"} & {name.split(".")[0] for name in imports(tree)}, path


@pytest.mark.parametrize("vendor", DOORS)
def test_a_vendor_is_named_behind_its_door_only(vendor):
    for path, tree in TREES.items():
        named = any(
            name.split(".")[0] == vendor or (vendor == "tensorboard" and "tensorboard" in name)
            for name in imports(tree)
        )
        behind = any(place(path) == door or place(path).startswith(door + "/") for door in DOORS[vendor])
        assert not named or behind, f"{path} imports {vendor}"


LONGER = {"config/schema": 320, "patches": 328, "trainer": 335}
"""Lines of the modules that have more than 300: a list of keys, a list of patches, and a class that reads as one
text."""


def functions():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_length_budget():
    lengths = {f"{place(path)}.{node.name}": node.end_lineno - node.lineno + 1 for path, node in functions()}
    assert max(lengths.values()) <= 80, max(lengths, key=lengths.get)
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 40
    lines = {place(path): len(path.read_text(encoding="utf-8").splitlines()) for path in TREES}
    assert {name: n for name, n in lines.items() if n > LONGER.get(name, 300)} == {}


def test_nothing_prints_and_nothing_catches_everything():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{path}:{node.lineno}"
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"everything"}
                assert not names & {"everything", "Exception", "BaseException"}, f"{path}:{node.lineno}"


def test_no_module_is_called_utils():
    assert not [p for p in PACKAGE if p.stem in ("utils", "util", "helpers", "common", "misc")]


def config_fields(cls, section=None):
    """(class, section's key, field) of every key of the config."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kinds = [a for a in typing.get_args(hints[field.name]) if dataclasses.is_dataclass(a)] or [hints[field.name]]
        if dataclasses.is_dataclass(kinds[0]):
            yield from config_fields(kinds[0], field.name)
        else:
            yield cls.__name__, section, field.name


def names_in(node):
    return {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)
    }


def reads(tree, classes_of_section):
    """(class, attribute) of what is read of config sections: `….section.attribute`, or by way of a name that is
    annotated with the section's class or assigned from a section."""
    classes = set().union(*classes_of_section.values())
    known = {}

    def classes_of(node):
        by_key = classes_of_section.get(node.attr, set()) if isinstance(node, ast.Attribute) else set()
        return by_key or known.get(ast.unparse(node), set())

    def assignments(node):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                both = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                yield from zip(target.elts, node.value.elts, strict=True) if both else [(target, node.value)]
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Call):
            # The sections of a table, as in `for name, one in cfg.evaluation.sets.items()`.
            method = node.iter.func
            if isinstance(method, ast.Attribute) and method.attr in ("items", "values"):
                yield node.target.elts[-1] if isinstance(node.target, ast.Tuple) else node.target, method.value

    for node in ast.walk(tree):
        annotation = getattr(node, "annotation", None)
        if annotation is not None:
            name = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
            known.setdefault(name, set()).update(names_in(annotation) & classes)
    for _ in range(2):  # a name may be assigned from another one that stands further down
        for node in ast.walk(tree):
            for target, value in assignments(node):
                known.setdefault(ast.unparse(target), set()).update(classes_of(value))
    return {(c, n.attr) for n in ast.walk(tree) if isinstance(n, ast.Attribute) for c in classes_of(n.value)}


def test_every_config_field_is_read_as_a_field_of_its_own_section():
    rows = list(config_fields(config.Config))
    classes_of_section = {}
    for cls, section, _ in rows:
        classes_of_section.setdefault(section, set()).add(cls)
    read = set().union(*(reads(tree, classes_of_section) for tree in TREES.values()))
    assert [(cls, name) for cls, _, name in rows if (cls, name) not in read] == []
    # Common names of one section do not count for another.
    assert not {("Optimizer", "name"), ("Parity", "path"), ("Reward", "dir")} & read


def test_importing_the_package_without_a_device_brings_no_heavy_library():
    import subprocess
    import sys

    code = (
        "import sys; from r1zero import config, reward; from r1zero.distributed import device, layout, world; "
        "print([m for m in ('torch', 'vllm', 'megatron', 'mpi4py') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        ).stdout.strip()
        == "[]"
    )

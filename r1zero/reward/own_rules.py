"""Rules of the user, `path.py:function`: checks the file, loads the function, and passes the arguments it declares."""

import ast
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from r1zero.config.errors import RewardError
from r1zero.config.suggestions import suggest

OFFERED = ("prompt", "additional", "equal")
"""Keyword arguments that a rule may declare in addition to response and label."""

_CALL = "a rule is called as rule(response, label), and gets prompt, additional and equal by name if it declares them"
_MODULE = "user_rule_"

Rule = Callable[[str, str, dict[str, Any]], float]


def check_rule(name: str) -> None:
    """Check that the file exists, is Python, and defines the function, without running anything.

    Raises:
        RewardError: with what the file lacks.
    """
    path, function = _parts(name)
    if not path.is_file():
        raise RewardError(f'reward rule "{name}": there is no file {path.absolute()}')
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else str(path)
        raise RewardError(f'reward rule "{name}": {where} is not Python: {getattr(error, "msg", error)}') from error
    defined = set(_bound(tree.body))
    if function not in defined and "*" not in defined:
        hint = suggest(function, sorted(defined), "defined name", '"{}"'.format)
        raise RewardError(f'reward rule "{name}": {path} defines no function "{function}"; {hint}')


def _parts(name: str) -> tuple[Path, str]:
    path, function = name.rsplit(":", 1)
    return Path(path), function


def _bound(statements: list[ast.stmt]) -> Iterator[str]:
    """Yields the names that a module binds by definition, import or assignment, also under `if` and `try`."""
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in statement.names)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
        else:
            for field in ("body", "orelse", "finalbody", "handlers"):
                for inner in getattr(statement, field, []):
                    yield from _bound(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def load_rule(name: str) -> Rule:
    """Returns `rule(response, label, offered)`, which calls the user's function.

    The file is executed once, before any worker is forked. It may import the files beside it.

    Raises:
        RewardError: the file cannot be run, or the function does not have the signature of a rule.
    """
    path, function = _parts(name)
    spec = importlib.util.spec_from_file_location(f"{_MODULE}{path.stem}", path)
    assert spec is not None and spec.loader is not None  # the name ends with .py, so Python has a loader for it
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # permanently, because a rule may import only when it is called
    _run(spec.loader.exec_module, module, name, path)
    rule = getattr(module, function, None)
    if not callable(rule):
        raise RewardError(f'reward rule "{name}": {path} defines no function "{function}"')
    declared = _declared(name, rule)

    def call(response: str, label: str, offered: dict[str, Any]) -> float:
        return float(rule(response, label, **{key: offered[key] for key in declared}))

    return call


def _run(execute: Callable[[Any], None], module: Any, name: str, path: Path) -> None:
    """Raises RewardError for any exception of the user's file."""
    finished = False
    try:
        execute(module)
        finished = True
    finally:
        _, error, trace = sys.exc_info()
        if not finished and error is not None:
            raise RewardError(f'reward rule "{name}": {place(trace, path) or path}: {said(error)}') from error


def _declared(name: str, rule: Callable[..., Any]) -> list[str]:
    """Returns which of OFFERED the rule takes. Raises RewardError if it needs anything else, or not two texts."""
    try:
        parameters = list(inspect.signature(rule).parameters.values())
    except ValueError:
        return []  # a built-in function, which is called with the two texts
    by_name = [p for p in parameters if p.name in OFFERED and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    by_place = [p for p in parameters if p not in by_name and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = [p.kind for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(by_place) < 2 and inspect.Parameter.VAR_POSITIONAL not in variadic:
        raise RewardError(f'reward rule "{name}": takes {len(by_place)} texts by position; {_CALL}')
    for parameter in parameters:
        filled = parameter in by_name or parameter in by_place[:2] or parameter.default is not parameter.empty
        if not filled and parameter.kind not in variadic:
            raise RewardError(f'reward rule "{name}": nothing fills its parameter "{parameter.name}"; {_CALL}')
    return list(OFFERED) if inspect.Parameter.VAR_KEYWORD in variadic else [p.name for p in by_name]


def place(trace: TracebackType | None, path: Path | None = None) -> str | None:
    """Returns file:line of the innermost call in a user's rule (in `path`, or in any), or None if there is none."""
    found = None
    for frame, line in traceback.walk_tb(trace):
        ours = (
            frame.f_globals.get("__name__", "").startswith(_MODULE)
            if path is None
            else frame.f_code.co_filename == str(path)
        )
        found = f"{frame.f_code.co_filename}:{line}" if ours else found
    return found


def said(error: BaseException) -> str:
    """Returns the exception as in the last line of Python's traceback; a syntax error includes its location."""
    return " ".join(traceback.format_exception_only(error)[-1].split())

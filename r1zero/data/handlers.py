"""Handlers turn a record into question and label. Each data layout is one function in HANDLERS.

A handler of your own is named in the config as `path.py:function`:

    def handler(record: Any, keys: MapKeys) -> tuple[str, str]:     # (question, label)

The record is the row as it is in the file: usually an object (a dict), but any JSON value is possible. The handler's
file may import the files beside it. The handler may return a third element, the system text, and a fourth, the history:
pairs of earlier questions and answers. `ValueError`, `LookupError` and `TypeError` reject the row with their message;
any other exception ends the run.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from r1zero.config import UserError, readable, reason, suggest
from r1zero.data import fields


@dataclass(frozen=True, kw_only=True)
class MapKeys:
    """Names of the columns that hold the parts of a row; `a.b` refers to a nested object. Empty: no such column."""

    prompt: str
    query: str = ""
    """Appended to the prompt on a new line. Rows may lack it."""
    response: str
    """The label, which the boxed answer must equal. If it is a list, the answer must equal any one of its entries."""
    system: str = ""
    """Replaces the template's system text. Rows may lack it."""
    history: str = ""
    """Earlier [question, answer] pairs. Rows may lack it."""
    solution: str = ""
    """A worked solution, used only by --check-labels. Rows may lack it."""


class Example(NamedTuple):
    """A question with its label, before templating."""

    question: str
    label: str
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Any, MapKeys], Any]
"""Returns an Example, or a tuple or list of its first two to four fields."""


def columns(record: dict[str, Any], keys: MapKeys) -> Example:
    """Alpaca's layout, with one column for each part. Either prompt or query may be empty."""
    query = fields.optional(record, keys.query)
    prompt = fields.optional(record, keys.prompt) if query else fields.text(record, keys.prompt)
    return Example(
        "\n".join(part for part in (prompt, query) if part),
        fields.label(record, keys.response),
        fields.optional(record, keys.system),
        _history(record, keys.history),
    )


def _history(record: dict[str, Any], column: str) -> tuple[tuple[str, str], ...]:
    pairs = (fields.lookup(record, column) if column else None) or []
    if not fields.are_pairs(pairs):
        raise ValueError(f"{column!r} is {fields.short(pairs)} and must be a list of [question, answer] pairs")
    return tuple((asked, answered) for asked, answered in pairs)


def gsm8k(record: dict[str, Any], keys: MapKeys) -> Example:
    """The response is a worked solution. The label follows its last `####`, with commas between thousands."""
    example = columns(record, keys)
    _, mark, label = example.label.rpartition("####")
    if not mark or not label.strip():
        raise ValueError(f"{keys.response!r} has no final answer after ####")
    return example._replace(label=label.strip().replace(",", ""))


def messages(record: dict[str, Any], keys: MapKeys) -> Example:
    """The prompt is a chat [{role, content}, ..] that ends with the user's question, as in verl's and DAPO's files."""
    turns = fields.present(record, keys.prompt)
    if not fields.is_chat(turns):
        raise ValueError(f"{keys.prompt!r} is {fields.short(turns)} and must be a list of {{role, content}} messages")
    system = turns[0]["content"] if turns[0].get("role") == "system" else ""
    said = turns[1:] if turns[0].get("role") == "system" else turns
    roles = [turn.get("role") for turn in said]
    if len(said) % 2 == 0 or roles != ["user", "assistant"] * (len(said) // 2) + ["user"]:
        raise ValueError(
            f"{keys.prompt!r} has the roles {fields.short(roles)}; user and assistant must alternate, and user must "
            "come last"
        )
    if not said[-1]["content"].strip():
        raise ValueError(f"{keys.prompt!r} ends with an empty question")
    contents = [turn["content"] for turn in said]
    return Example(
        contents[-1],
        fields.label(record, keys.response),
        system,
        tuple(zip(contents[:-1:2], contents[1::2], strict=True)),
    )


HANDLERS: dict[str, Handler] = {"columns": columns, "gsm8k": gsm8k, "messages": messages}


def find(name: str) -> Handler:
    """Returns a handler by name, or the user's own by `path.py:function`. Raises UserError if there is none."""
    if name in HANDLERS:
        return HANDLERS[name]
    path, colon, function = name.rpartition(":")
    if not colon:
        hint = suggest(name, HANDLERS)
        raise UserError(f"handler = {name!r}: is not known; {hint}; a handler of your own is written path.py:function")
    with readable(f"handler = {name!r}", "name an existing Python file"):
        if not Path(path).is_file():
            raise UserError(f"handler = {name!r}: there is no file {path!r}")
    handler = getattr(_load(name, Path(path).absolute()), function, None)
    if not callable(handler):
        raise UserError(f"handler = {name!r}: {path} defines no function {function!r}")
    return handler


def _load(name: str, path: Path) -> Any:
    """Load the file of a user's handler. It may import its neighbours, also later when the handler is called."""
    spec = importlib.util.spec_from_file_location("own_handler", path)
    if spec is None or spec.loader is None:
        raise UserError(f"handler = {name!r}: {str(path)!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module of a class here
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"handler = {name!r}: {error.filename}:{error.lineno}: {error.msg}") from None
    except (ImportError, OSError) as error:
        raise UserError(f"handler = {name!r}: {path} cannot be loaded ({reason(error)})") from None
    finally:
        sys.path.remove(str(path.parent))
        sys.path.append(str(path.parent))  # after everything that is installed
    return module


def apply(handler: Handler, record: Any, keys: MapKeys) -> Example | str:
    """Returns the row's example, or the reason why it has none."""
    if handler in HANDLERS.values() and not isinstance(record, dict):
        return f"is a JSON {type(record).__name__}; a row must be an object, unless a handler of your own reads it"
    try:
        example = _example(handler(record, keys))
        _check(example)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        return str(error) or type(error).__name__
    return example


def _example(returned: Any) -> Example:
    """Raises ValueError unless a user's handler returned a valid value."""
    if not isinstance(returned, tuple | list) or not 2 <= len(returned) <= 4:
        raise ValueError(
            f"the handler returned the {type(returned).__name__} {fields.short(returned)}; it must return a tuple of "
            "question and label, and may add the system text and the history"
        )
    for name, value in zip(("question", "label", "system text"), returned, strict=False):
        if not isinstance(value, str):
            raise ValueError(f"the handler returned {fields.short(value)} as its {name}; it must be a text")
    if len(returned) == 4 and not fields.are_pairs(returned[3]):
        raise ValueError(
            f"the handler returned {fields.short(returned[3])} as its history; it must be a list of (question, answer) "
            "pairs"
        )
    return Example(*returned[:3], *(tuple((asked, answered) for asked, answered in turns) for turns in returned[3:]))


def _check(example: Example) -> None:
    """Raises ValueError if a text is empty, or contains half of a surrogate pair, which JSON can spell but UTF-8
    not."""
    if not example.question.strip() or not example.label.strip():
        raise ValueError("the handler returned an empty question or label")
    for t in (example.question, example.label, example.system, *(t for pair in example.history for t in pair)):
        try:
            t.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"has the lone surrogate {t[error.start]!r}, which is not a character") from None

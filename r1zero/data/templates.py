"""Turns questions into prompts by templates from a JSON file in MindSpeed-RL's format, whose own file loads unchanged.

The file is a list of entries. An entry has a `name` and optionally `format_user`, `format_assistant`, `format_system`,
`format_separator`, `format_prefix` (each `{"slots": [...]}`), `default_system`, `stop_words`, `replace_eos`,
`efficient_eos` and `template_class`. A slot is a text that may have `{{content}}`, or `["bos_token"]`,
`["eos_token"]`, or `{"token": "<name>"}`. Semantics: mindspeed_rl/datasets/templates.py and formatter.py.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from r1zero.config import UserError, read_json, suggest

_INSTALLED = Path(__file__).resolve().parents[1] / "templates" / "templates.json"
"""Where pyproject.toml puts the file when the package is installed; absent in the repository."""
_IN_REPOSITORY = Path(__file__).resolve().parents[2] / "configs" / "model" / "templates.json"
SHIPPED = _INSTALLED if _INSTALLED.is_file() else _IN_REPOSITORY
THOUGHT_WORDS = ("<think>", "</think>")
_EMPTY_THOUGHT = f"{THOUGHT_WORDS[0]}\n\n{THOUGHT_WORDS[1]}\n\n"
_PLACEHOLDER = re.compile(r"\{\{([a-zA-Z_][a-zA-Z0-9_]*)\}\}")

FIELDS = (
    "name",
    "format_user",
    "format_assistant",
    "format_system",
    "format_separator",
    "format_prefix",
    "default_system",
    "stop_words",
    "replace_eos",
    "efficient_eos",
    "template_class",
)
UNUSED_FIELDS = ("format_observation", "format_function", "format_tools", "force_system", "thought_words")
"""For tool calls, or without effect on a prompt in the reference either. Allowed, but not used."""


class Segment(NamedTuple):
    """A part of a prompt that is tokenised separately, so that merges never cross from one slot to the next."""

    kind: Literal["text", "token", "bos", "eos"]
    text: str = ""
    given: tuple[tuple[int, int], ...] = ()
    """Begin and end of each part of the text that comes from the data and not from the template."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """A parsed entry of a template file."""

    name: str
    digest: str
    """sha256 of the entry, independent of spacing and order of keys."""
    user: tuple[Segment, ...]
    assistant: tuple[Segment, ...]
    system: tuple[Segment, ...]
    separator: tuple[Segment, ...]
    """Precedes the second and later questions of a conversation."""
    prefix: tuple[Segment, ...]
    default_system: str
    """The system text if the data has none; empty: no system part."""
    stop_words: tuple[str, ...]
    replace_eos: bool
    """Whether the first stop word replaces the end token inside the template."""
    system_in_user: bool
    """Llama 2: the system text is inside the brackets of the first question."""
    reasoning: bool
    """Qwen3: unless thinking is enabled, the prompt ends with an empty thought."""


def prompts_digest(template: Template, thinking: bool) -> str:
    """Returns the sha256 of what determines the prompts: the entry, and `thinking` where it changes the prompts.

    Without thinking it is the digest of the entry.
    """
    if not (template.reasoning and thinking):
        return template.digest
    return hashlib.sha256(json.dumps([template.digest, {"enable_thinking": True}]).encode()).hexdigest()


def load(path: str, name: str) -> Template:
    """Load the entry `name` of a template file. Raises UserError with file, entry and field."""
    entries = _entries(path)
    names = [entry["name"] for entry in entries]
    if names.count(name) > 1:
        raise UserError(f"{path}: has {names.count(name)} templates named {name!r}; rename all but one")
    if name not in names:
        hint = suggest(name, names, "template") if names else "the file is empty"
        raise UserError(f"{path}: has no template {name!r}; {hint}")
    number = names.index(name)
    return _template(entries[number], f"{path}: entry {number + 1} ({name})")


def _entries(path: str) -> list[dict[str, Any]]:
    entries = read_json(path, "name an existing template file")
    if not isinstance(entries, list):
        raise UserError(f"{path}: is a JSON {type(entries).__name__}; a template file must be a list of entries")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise UserError(f'{path}: entry {number} has no name; every entry must be an object with a text "name"')
    return entries


def _template(entry: dict[str, Any], where: str) -> Template:
    for key in entry:
        if key not in FIELDS + UNUSED_FIELDS:
            raise UserError(f"{where}: unknown field {key!r}; {suggest(key, FIELDS)}")
    try:
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: has the lone surrogate {error.object[error.start]!r}; write the whole character"
        ) from None
    stop_words, replace_eos = _stop_words(entry, where), _flag(entry, "replace_eos", where)
    if replace_eos and not stop_words:
        raise UserError(
            f"{where}: replace_eos is true without stop_words; the first stop word is what replaces the end token"
        )
    template_class = entry.get("template_class")
    if template_class not in (None, "Template", "ReasoningTemplate"):
        raise UserError(f"{where}.template_class = {template_class!r}; it must be 'ReasoningTemplate' or absent")
    end = () if _flag(entry, "efficient_eos", where) else (Segment("eos"),)
    content = (Segment("text", "{{content}}"),)
    return Template(
        name=entry["name"],
        digest=hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest(),
        user=_filled(entry, "format_user", where, content),
        assistant=_filled(entry, "format_assistant", where, content + end),
        system=_filled(entry, "format_system", where, content),
        separator=_fixed(entry, "format_separator", where),
        prefix=_fixed(entry, "format_prefix", where),
        default_system=_default_system(entry, where),
        stop_words=stop_words,
        replace_eos=replace_eos,
        system_in_user=entry["name"].startswith("llama2"),
        reasoning=template_class == "ReasoningTemplate",
    )


def _flag(entry: dict[str, Any], key: str, where: str) -> bool:
    value = entry.get(key)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{where}.{key} = {value!r}; it must be true or false")
    return bool(value)


def _stop_words(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    words = [] if entry.get("stop_words") is None else entry["stop_words"]
    if not isinstance(words, list) or not all(isinstance(w, str) and w for w in words):
        raise UserError(f"{where}.stop_words = {words!r}; it must be a list of texts that are not empty")
    return tuple(words)


def _default_system(entry: dict[str, Any], where: str) -> str:
    system = "" if entry.get("default_system") is None else entry["default_system"]
    if isinstance(system, list) and all(isinstance(part, str) for part in system):
        return "".join(system)
    if not isinstance(system, str):
        raise UserError(f"{where}.default_system = {system!r}; it must be a text or a list of texts")
    return system


def _filled(entry: dict[str, Any], key: str, where: str, default: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Returns the slots of a field, which must contain `{{content}}` exactly once."""
    if entry.get(key) is None:
        return default
    pieces = _slots(entry[key], f"{where}.{key}")
    names = [name for piece in pieces if piece.kind == "text" for name in _PLACEHOLDER.findall(piece.text)]
    unknown = sorted(set(names) - {"content", "idx"})
    if unknown:
        raise UserError(f"{where}.{key}: nothing fills the placeholder {{{{{unknown[0]}}}}}; use {{{{content}}}}")
    if names.count("content") != 1:
        raise UserError(
            f"{where}.{key}: has {{{{content}}}} {names.count('content')} times in its slots; it must be there once"
        )
    return pieces


def _fixed(entry: dict[str, Any], key: str, where: str) -> tuple[Segment, ...]:
    """Returns the slots of a field, which must not contain a placeholder."""
    if entry.get(key) is None:
        return ()
    pieces = _slots(entry[key], f"{where}.{key}")
    for piece in pieces:
        if piece.kind == "text" and _PLACEHOLDER.search(piece.text):
            raise UserError(
                f"{where}.{key}: the slot {piece.text!r} has a placeholder; this part is the same for every question"
            )
    return pieces


def _slots(value: Any, where: str) -> tuple[Segment, ...]:
    if not isinstance(value, dict) or not isinstance(value.get("slots"), list):
        raise UserError(f'{where} = {value!r}; it must be an object with a list under "slots"')
    pieces = (_slot(slot, f"{where}.slots[{i}]") for i, slot in enumerate(value["slots"]))
    return tuple(piece for piece in pieces if piece != Segment("text"))


def _slot(slot: Any, where: str) -> Segment:
    if isinstance(slot, str):
        return Segment("text", slot)
    if isinstance(slot, list) and slot in (["bos_token"], ["eos_token"]):
        return Segment(slot[0].removesuffix("_token"))
    if isinstance(slot, dict) and list(slot) == ["token"] and isinstance(slot["token"], str):
        return Segment("token", slot["token"])
    raise UserError(f'{where} = {slot!r}; a slot must be a text, ["bos_token"], ["eos_token"] or {{"token": "..."}}')


def texts(template: Template) -> list[str]:
    """Returns the texts that the template itself writes into a prompt, without the placeholders."""
    parts = template.user + template.assistant + template.system + template.separator + template.prefix
    written = [text for piece in parts for text in _PLACEHOLDER.split(piece.text)[::2]]
    thought = [_EMPTY_THOUGHT] if template.reasoning else []
    return [text for text in [*written, template.default_system, *thought] if text]


def render(
    template: Template, question: str, system: str, history: tuple[tuple[str, str], ...], thinking: bool
) -> list[Segment]:
    """Returns the prompt for one question after `history`, pairs of an earlier question and its answer.

    system: empty for the template's own. thinking: used only by reasoning templates.
    """
    own, system = not system, system or template.default_system
    pieces = list(template.prefix)
    if system and not template.system_in_user:
        filled = _fill(template.system, system, 0)
        pieces += [piece._replace(given=()) for piece in filled] if own else filled
    for turn, (asked, answered) in enumerate([*history, (question, None)]):
        before = ""
        if turn:
            pieces += template.separator
        elif system and template.system_in_user:
            before = "".join(piece.text for piece in _fill(template.system, system, 0))
        pieces += _fill(template.user, before + asked, turn)
        if answered is not None:
            pieces += _fill(template.assistant, _without_thought(answered) if template.reasoning else answered, turn)
    if template.reasoning and not thinking:
        pieces.append(Segment("text", _EMPTY_THOUGHT))
    return pieces


def _fill(pieces: tuple[Segment, ...], content: str, turn: int) -> list[Segment]:
    filled = (_fill_text(piece.text, content, turn) if piece.kind == "text" else piece for piece in pieces)
    return [piece for piece in filled if piece.kind != "text" or piece.text]


def _fill_text(text: str, content: str, turn: int) -> Segment:
    """Fill the placeholders of a template's text in one pass, so that placeholders in the data remain as they are."""
    filled, given, at = "", [], 0
    for match in _PLACEHOLDER.finditer(text):
        filled += text[at : match.start()]
        if match[1] == "content":
            given.append((len(filled), len(filled) + len(content)))
        filled += {"content": content, "idx": str(turn)}[match[1]]
        at = match.end()
    return Segment("text", filled + text[at:], tuple(given))


def _without_thought(answer: str) -> str:
    begin, end = map(re.escape, THOUGHT_WORDS)
    return re.sub(f"{begin}.*?{end}", "", answer, flags=re.DOTALL).lstrip("\n")

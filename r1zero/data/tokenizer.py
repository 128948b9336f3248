"""Loads tokenizers, computes their digest, encodes prompts and decodes responses.

The only module that imports transformers' tokenizers.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Any

from r1zero.config import CollectiveError, UserError, read_json, readable, reason
from r1zero.data.templates import Segment
from r1zero.reward.rules import ANSWER, END_ANSWER, END_THINK, THINK

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""One of these must exist: transformers makes an empty tokenizer from a config.json alone."""
JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
COPY = "copy it again from its model"
MARKS = (THINK, END_THINK, ANSWER, "\\boxed{", END_ANSWER)
"""The texts that the reward rules look for in a response."""
_MARKER = re.compile(r"<[|｜][^<>|｜]+[|｜]>")
"""Matches the usual spelling of control tokens in chat templates."""


class _BareErrors:
    """Turns the bare Exception that tokenizers' Rust code raises for files that it cannot use into a UserError."""

    def __init__(self, path: str):
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is Exception and error is not None:
            raise UserError(f"tokenizer {self.path!r}: cannot be loaded ({reason(error)}); {COPY}") from None


def load(path: str) -> Any:
    """Load the fast tokenizer of a model folder. Nothing is downloaded and no code of the folder runs.

    Raises UserError.
    """
    folder, where = Path(path), f"tokenizer {path!r}"
    with readable(where, "name a folder with a model's tokenizer"):
        if not any((folder / name).is_file() for name in VOCABULARY_FILES):
            raise UserError(
                f"{where}: has none of {', '.join(VOCABULARY_FILES)}; name a folder with a model's tokenizer"
            )
        for name in JSON_FILES:
            _read_object(folder / name)
    from transformers import AutoTokenizer  # after the checks, because the import takes seconds

    try:
        with _BareErrors(path):
            tokenizer = AutoTokenizer.from_pretrained(
                path, use_fast=True, local_files_only=True, trust_remote_code=False
            )
            # transformers reads some values of the files only now; an unk_token that is not a token makes it recurse.
            tokenizer.decode(tokenizer.encode("a")), tokenizer.all_special_ids
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RecursionError) as error:
        raise UserError(f"{where}: cannot be loaded ({type(error).__name__}: {reason(error)}); {COPY}") from None
    if not tokenizer.is_fast:
        raise UserError(f"{where}: is a {type(tokenizer).__name__}, not a fast one; save it with a tokenizer.json")
    return tokenizer


def _read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file of a model folder; {} if it is missing. Raises UserError, also for a byte-order mark."""
    if not file.is_file():
        return {}
    content = read_json(file, COPY)
    if not isinstance(content, dict):
        raise UserError(f"{file}: is a JSON {type(content).__name__} and must be an object; {COPY}")
    with file.open("rb") as opened:
        if opened.read(3) == b"\xef\xbb\xbf":
            raise UserError(
                f"{file}: begins with a byte-order mark, which transformers and vLLM do not read; save it without one"
            )
    return content


def digest(path: str) -> str:
    """Returns the sha256 of what determines the ids: tokens, merges, normaliser, pre-tokeniser, special tokens.

    The digest is of the loaded tokenizer, not of its files. Saving it again, or changing the chat template, does not
    change the digest; loading the same files with another class, which transformers chooses by the config beside them,
    does.
    """
    tokenizer = load(path)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Merges are stored as strings or as pairs.
    merges = [m if isinstance(m, str) else " ".join(m) for m in backend["model"].get("merges", [])]
    facts = [
        sorted(tokenizer.get_vocab().items()),
        merges,
        backend["normalizer"],
        backend["pre_tokenizer"],
        sorted(tokenizer.all_special_ids),
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Returns id -> text of the special tokens, such as <|im_end|>, which decoding omits by default."""
    return {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def encode(
    tokenizer: Any, pieces: Sequence[Segment], eos_id: int | None, controls: Mapping[int, str]
) -> tuple[list[int], str]:
    """Returns the token ids of a rendered prompt, and the text that they represent.

    The tokenizer adds no begin token of its own, so there is one exactly where the template has it. If the tokenizer
    has no begin token, none is added, as in the reference. controls: special tokens that are encoded as ordinary text
    where the data spells them. Raises UserError if a token slot does not name a token.
    """
    ids: list[int] = []
    text = ""
    for piece in pieces:
        if piece.kind == "text":
            ids += _text_ids(tokenizer, piece, controls)
            text += piece.text
            continue
        token = (
            {"bos": tokenizer.bos_token_id, "eos": eos_id}[piece.kind]
            if piece.kind != "token"
            else single_token(tokenizer, piece.text)
        )
        if token is not None:
            ids.append(token)
            text += tokenizer.convert_ids_to_tokens(token)
    return ids, text


def _text_ids(tokenizer: Any, piece: Segment, controls: Mapping[int, str]) -> list[int]:
    """Encode a text in one call, unless the data spells control tokens; then split it at the template's own."""
    ids = tokenizer.encode(piece.text, add_special_tokens=False)
    if not any(i in controls for i in ids):
        return ids
    own = _own_controls(piece, controls)
    if sum(i in controls for i in ids) == len(own):
        return ids
    ids, at = [], 0
    for begin, end, token in [*own, (len(piece.text), len(piece.text), None)]:
        ids += tokenizer.encode(piece.text[at:begin], add_special_tokens=False, split_special_tokens=True)
        ids += [] if token is None else [token]
        at = end
    return ids


def _own_controls(piece: Segment, controls: Mapping[int, str]) -> list[tuple[int, int, int]]:
    """Returns begin, end and id of the control tokens in the template's own part of a text."""
    by_text = {content: i for i, content in controls.items() if content}
    pattern = "|".join(map(re.escape, sorted(by_text, key=len, reverse=True)))
    found = ((m.start(), m.end(), by_text[m[0]]) for m in re.finditer(pattern, piece.text))
    return [(b, e, i) for b, e, i in found if not any(b < end and begin < e for begin, end in piece.given)]


def single_token(tokenizer: Any, text: str) -> int:
    """Returns the id of a text that is a single token. Raises UserError with its tokens if it is not."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise UserError(
            f"template: {text!r} is {len(ids)} tokens in this tokenizer ({ids}) and must be one; "
            "choose the template of the tokenizer's model"
        )
    return ids[0]


def dropped_ids(tokenizer: Any, stop_token_ids: Iterable[int]) -> frozenset[int]:
    """Returns the tokens that are removed before a response is graded: special tokens and stop tokens.

    The reference makes every stop word a special token; here stop words may be ordinary. Texts that the rules look for
    are kept even if they are special tokens, as <think> is in some models.
    """
    texts = tokenizer.added_tokens_decoder
    ids = {*control_tokens(tokenizer), *stop_token_ids}
    return frozenset(i for i in ids if i not in texts or not _is_of_marks(texts[i].content.strip()))


def _is_of_marks(text: str) -> bool:
    return bool(text) and any(text in mark or mark in text for mark in MARKS)


def decode(tokenizer: Any, ids: Sequence[int], dropped: Set[int]) -> str:
    """Returns the text of a response as it is graded. dropped: see `dropped_ids`."""
    kept = [i for i in ids if i not in dropped]
    return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def check_marks(tokenizer: Any) -> None:
    """Raises CollectiveError if a text that the rules look for does not survive encoding and decoding."""
    text = f"{THINK} a {END_THINK}{ANSWER} \\boxed{{1}} {END_ANSWER}"
    ids = tokenizer.encode(text, add_special_tokens=False)
    back = decode(tokenizer, ids, dropped_ids(tokenizer, ()))
    for mark in MARKS:
        if mark not in back:
            raise CollectiveError(
                f"tokenizer {tokenizer.name_or_path!r}: turns {text!r} into {back!r}, where {mark!r}, which the reward "
                "rules look for, is lost; choose a tokenizer that can represent it"
            )


def check_texts(tokenizer: Any, where: str, texts: Iterable[str]) -> None:
    """Raises UserError if encoding and decoding changes a text, apart from white space."""
    for text in texts:
        back = decode(tokenizer, tokenizer.encode(text, add_special_tokens=False), frozenset())
        if "".join(back.split()) != "".join(text.split()):
            raise UserError(
                f"{where}: its {text!r} is {back!r} to the tokenizer {tokenizer.name_or_path!r}; "
                "choose the template of the tokenizer's model"
            )


def split_markers(tokenizer: Any, texts: Iterable[str]) -> list[str]:
    """Returns the words of the texts that look like control tokens but are not tokens of this tokenizer."""
    markers = dict.fromkeys(marker for text in texts for marker in _MARKER.findall(text))
    return [marker for marker in markers if len(tokenizer.encode(marker, add_special_tokens=False)) > 1]


def missing_ids(tokenizer: Any, vocab_size: int) -> list[int]:
    """Returns the ids below `vocab_size` (rows of the embedding) that stand for no token and must not be sampled."""
    known = set(tokenizer.get_vocab().values())
    return [i for i in range(vocab_size) if i not in known]


def check_ids(tokenizer: Any, stop_token_ids: Sequence[int], vocab_size: int) -> None:
    """Raises UserError if the tokenizer, or a stop token, has an id beyond the model's embedding."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r}: has ids up to {largest}, but the model's vocab_size is "
            f"{vocab_size}; copy the model's own tokenizer into its folder and run preprocess.py again"
        )
    strange = [i for i in stop_token_ids if not 0 <= i < vocab_size]
    if strange:
        raise UserError(
            f"stop token id {strange[0]}: is not below the model's vocab_size = {vocab_size}; "
            f"correct eos_token_id in {tokenizer.name_or_path}/generation_config.json, or run preprocess.py again"
        )


def eos_ids(tokenizer: Any) -> tuple[int, ...]:
    """Returns the ids that end a response: the tokenizer's own, and those in the model's generation_config.json.

    If neither has any, those in its config.json are used, as in transformers. Raises UserError for an invalid id.
    """
    folder = Path(tokenizer.name_or_path)
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = {*own, *_eos_ids_of(folder / "generation_config.json")}
    return tuple(sorted(ids or _eos_ids_of(folder / "config.json")))


def stop_ids(tokenizer: Any, stop_token_ids: Iterable[int]) -> list[int]:
    """Returns the ids that end a response: end tokens and the template's stop words.

    Raises CollectiveError if there are none.
    """
    ids = sorted({*eos_ids(tokenizer), *stop_token_ids})
    if not ids:
        raise CollectiveError(
            f"model.path = {tokenizer.name_or_path!r}: neither tokenizer_config.json nor generation_config.json nor "
            "config.json names an end token (eos_token_id), and the data's template has no stop word, so no response "
            "would ever end; name the model's end token in tokenizer_config.json (eos_token)"
        )
    return ids


def _eos_ids_of(file: Path) -> set[int]:
    value = _read_object(file).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for i in ids:
        if type(i) is not int or i < 0:
            raise UserError(
                f"{file}: eos_token_id = {value!r}; it must be the number of a token, a list of such numbers, or null"
            )
    return set(ids)

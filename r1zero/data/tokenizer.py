"""The only door to transformers' tokenizers: load, digest, encode a rendered prompt, decode a response."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1zero.config import UserError
from r1zero.data.templates import Piece

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""One of them must be there: transformers makes an empty tokenizer out of a config.json alone."""
JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


def load(path: str) -> Any:
    """The fast tokenizer of a model folder; nothing is downloaded, no code of the folder is run. Raises UserError."""
    folder = Path(path)
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise UserError(
            f"tokenizer {path!r}: has none of {', '.join(VOCABULARY_FILES)}; name a folder with a model's tokenizer"
        )
    for name in JSON_FILES:
        _check_object(folder / name)
    from transformers import AutoTokenizer  # here, because it takes seconds and an unreadable folder should not

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"tokenizer {path!r}: cannot be loaded ({type(error).__name__}: {reason}); copy it again from its model"
        ) from None
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {path!r}: is a {type(tokenizer).__name__}, not a fast one; save it with a tokenizer.json"
        )
    return tokenizer


def _check_object(file: Path) -> None:
    if not file.is_file():
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is torn or not JSON ({error}); copy it again from its model") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{file}: is a JSON {type(content).__name__} and must be an object; copy it again from its model"
        )


def digest(path: str) -> str:
    """sha256 of what decides the ids: tokens, merges, normaliser, pre-tokeniser, special tokens.

    Of the loaded tokenizer rather than of its files: saving it again, or a new chat template, leaves the digest alone,
    while another class for the same files (transformers chooses it by the config beside them) does not.
    """
    tokenizer = load(path)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [
        m if isinstance(m, str) else " ".join(m) for m in backend["model"].get("merges", [])
    ]  # both spellings exist
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


def encode(tokenizer: Any, pieces: Sequence[Piece], eos_id: int | None) -> tuple[list[int], str]:
    """Token ids of a rendered prompt and the text they stand for.

    The begin token is there exactly where the template has it: the tokenizer adds none of its own. A tokenizer
    without one adds nothing, as in the reference. Raises UserError where a token slot names no token.
    """
    ids: list[int] = []
    text = ""
    for piece in pieces:
        if piece.kind == "text":
            ids += tokenizer.encode(piece.text, add_special_tokens=False)
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


def single_token(tokenizer: Any, text: str) -> int:
    """The id of a text that is one token. Raises UserError with what it is instead."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise UserError(
            f"template: {text!r} is {len(ids)} tokens in this tokenizer ({ids}) and must be one; "
            "choose the template of the tokenizer's model"
        )
    return ids[0]


def decode(tokenizer: Any, ids: Sequence[int], stop_token_ids: Sequence[int] = ()) -> str:
    """The text of a response without special tokens, as the reference grades it.

    The reference makes every stop word a special token; `stop_token_ids` leaves out those that are ordinary here.
    """
    kept = [i for i in ids if i not in stop_token_ids] if stop_token_ids else list(ids)
    return tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def missing_ids(tokenizer: Any, vocab_size: int) -> list[int]:
    """Ids below `vocab_size`, rows of the model's embedding, that no token has: never to be sampled."""
    known = set(tokenizer.get_vocab().values())
    return [i for i in range(vocab_size) if i not in known]


def check_ids(tokenizer: Any, stop_token_ids: Sequence[int], vocab_size: int) -> None:
    """Raises UserError where the tokenizer that made the data, or a stop token, has an id beyond the embedding."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r}: has ids up to {largest}, and the model's vocab_size is "
            f"{vocab_size}; copy the model's own tokenizer into its folder and run preprocess.py again"
        )
    strange = [i for i in stop_token_ids if not 0 <= i < vocab_size]
    if strange:
        raise UserError(
            f"stop token id {strange[0]}: is not below the model's vocab_size = {vocab_size}; "
            f"correct eos_token_id in {tokenizer.name_or_path}/generation_config.json, or run preprocess.py again"
        )


def eos_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's own, and those of the model's generation_config.json beside it."""
    ids = {tokenizer.eos_token_id}
    file = Path(tokenizer.name_or_path) / "generation_config.json"
    _check_object(file)
    if file.is_file():
        value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        ids.update(value if isinstance(value, list) else [value])
    return tuple(sorted(i for i in ids if isinstance(i, int)))

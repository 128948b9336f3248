"""Example to token ids and text: by an entry of a template file, or by the tokenizer's own chat template."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from r1zero.config import UserError
from r1zero.data import templates, tokenizer
from r1zero.data.handlers import Example
from r1zero.data.templates import Segment

NO_BOS = (
    "template {} begins with the begin token, which {} does not have: prompts begin without one, as in the reference"
)
NO_EOS = (
    "{} names no end token (eos_token_id) in its files and template {} has no stop word: train.py will refuse the "
    "data, because no response would ever end"
)
CUT_MARKERS = (
    "template {} has {}, which {} splits into several ordinary tokens: is it the template of this tokenizer's model?"
)
CHAT = "chat"
"""The name of the tokenizer's own chat template."""
_PLACE = "\ue000{}\ue001"
"""Stands for the text of a message while the chat template is rendered; private characters, which no template has."""
_PLACES = re.compile("\ue000([0-9]+)\ue001")


@dataclass(frozen=True)
class How:
    """The keys of a data config that say how an example becomes a prompt."""

    templates: str
    template: str
    thinking: bool
    arguments: dict[str, Any]
    allow_special: bool


def find(path: str, how: How) -> "Encoder":
    """path: of the tokenizer. Raises UserError where the template is missing or is not one of this tokenizer."""
    return ChatEncoder(path, how) if how.template == CHAT else TemplateEncoder(path, how)


class Encoder:
    """What the two kinds have in common."""

    path: str
    """Of the file or folder that the template comes from."""
    digest: str
    stop_words: tuple[str, ...] = ()
    notes: list[str]
    """What a user should know though nothing is wrong."""

    def __init__(self, path: str, how: How):
        self.tokenizer = tokenizer.load(path)
        tokenizer.check_marks(self.tokenizer)
        self.controls = {} if how.allow_special else tokenizer.control_tokens(self.tokenizer)
        self.stop_token_ids: list[int] = []
        self.eos_id = self.tokenizer.eos_token_id
        self.notes = []

    def encode(self, example: Example) -> tuple[list[int], str]:
        """Token ids and text of the prompt. Raises ValueError where the template refuses the example."""
        return tokenizer.encode(self.tokenizer, self.pieces(example), self.eos_id, self.controls)

    def pieces(self, example: Example) -> list[Segment]:
        raise NotImplementedError


class TemplateEncoder(Encoder):
    """By an entry of a template file."""

    def __init__(self, path: str, how: How):
        self.template, self.thinking = templates.load(how.templates, how.template), how.thinking
        if how.arguments:
            raise UserError(
                f"template_arguments = {how.arguments}: are for the tokenizer's own chat template, and template = "
                f'{how.template!r}; remove them, or set template = "{CHAT}"'
            )
        super().__init__(path, how)
        template = self.template
        self.path, self.digest, self.stop_words = how.templates, template.digest, template.stop_words
        tokenizer.check_texts(self.tokenizer, f"template {template.name}", templates.texts(template))
        self.stop_token_ids = [tokenizer.single_token(self.tokenizer, word) for word in template.stop_words]
        if template.replace_eos:
            self.eos_id = self.stop_token_ids[0]
        if Segment("bos") in template.prefix + template.user and self.tokenizer.bos_token_id is None:
            self.notes.append(NO_BOS.format(template.name, path))
        if not self.stop_token_ids and not tokenizer.eos_ids(self.tokenizer):
            self.notes.append(NO_EOS.format(path, template.name))
        if cut := tokenizer.split_markers(self.tokenizer, templates.texts(template)):
            self.notes.append(CUT_MARKERS.format(template.name, ", ".join(map(repr, cut)), path))

    def pieces(self, example: Example) -> list[Segment]:
        return templates.render(self.template, example.question, example.system, example.history, self.thinking)


class ChatEncoder(Encoder):
    """By the tokenizer's own chat template, with the generation prompt at the end."""

    def __init__(self, path: str, how: How):
        super().__init__(path, how)
        self.path, self.arguments = path, {"enable_thinking": how.thinking, **how.arguments}
        template = self.tokenizer.chat_template
        if not template:
            raise UserError(
                f'template = "{CHAT}": the tokenizer {path!r} has no chat template of its own; name an entry of '
                f"{how.templates}"
            )
        facts = json.dumps([template, self.arguments], sort_keys=True, default=str)
        self.digest = hashlib.sha256(facts.encode()).hexdigest()
        if not tokenizer.eos_ids(self.tokenizer):
            self.notes.append(NO_EOS.format(path, CHAT))

    def pieces(self, example: Example) -> list[Segment]:
        """One text, in which the data's parts are known, so that control tokens they spell stay ordinary text."""
        messages = [{"role": "system", "content": example.system}] if example.system else []
        for asked, answered in example.history:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": example.question})
        plain = self._rendered(messages)
        text, given = self._filled(messages, strip=False)
        if text != plain:  # many templates strip the texts of messages
            text, given = self._filled(messages, strip=True)
        if text != plain:
            raise ValueError("the tokenizer's chat template changes the text of a message, which cannot be followed")
        return [Segment("text", text, tuple(given))]

    def _filled(self, messages: list[dict[str, str]], *, strip: bool) -> tuple[str, list[tuple[int, int]]]:
        """The template rendered around places, which are then filled: the text, and where the data's parts are."""
        places = [{**message, "content": _PLACE.format(i)} for i, message in enumerate(messages)]
        frame, text, given, at = self._rendered(places), "", [], 0
        for match in _PLACES.finditer(frame):
            content = messages[int(match[1])]["content"]
            content = content.strip() if strip else content
            text += frame[at : match.start()]
            given.append((len(text), len(text) + len(content)))
            text, at = text + content, match.end()
        return text + frame[at:], given

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.arguments
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            raise ValueError(f"the tokenizer's chat template refuses the messages ({error})") from None

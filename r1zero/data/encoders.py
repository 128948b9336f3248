"""Turns examples into token ids and text, with an entry of a template file or the tokenizer's own chat template."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from r1zero.config import UserError
from r1zero.data import templates, tokenizer
from r1zero.data.handlers import Example
from r1zero.data.templates import Segment

NO_BOS = "template {} starts with the begin token, which {} does not have; prompts start without it, as in MindSpeed-RL"
NO_EOS = (
    "{} names no end token (eos_token_id) in its files, and template {} has no stop word; train.py will refuse the "
    "data, because no response would ever end"
)
CUT_MARKERS = (
    "template {} has {}, which {} splits into several ordinary tokens; check that the template fits the tokenizer"
)
CHAT = "chat"
"""The value of `template` that selects the tokenizer's own chat template."""
_PLACE = "\ue000{}\ue001"
"""Placeholder for the text of a message while the chat template is rendered. No template contains these private-use
characters."""
_PLACES = re.compile("\ue000([0-9]+)\ue001")


@dataclass(frozen=True)
class How:
    """The keys of a data config that determine how an example becomes a prompt.

    templates: path of the template file. template: name of an entry, or CHAT. arguments: `template_arguments`, which
    are passed to the chat template. allow_special: whether control tokens in the data are encoded as such.
    """

    templates: str
    template: str
    thinking: bool
    arguments: dict[str, Any]
    allow_special: bool


def find(path: str, how: How) -> "Encoder":
    """Returns the encoder for how.template. path: the tokenizer's folder.

    Raises UserError if the template does not exist, or if the tokenizer cannot be used with it.
    """
    return ChatEncoder(path, how) if how.template == CHAT else TemplateEncoder(path, how)


class Encoder:
    """The common part of the two encoders."""

    path: str
    """Path of the file or folder that the template comes from."""
    digest: str
    """sha256 of the template and of the arguments that change its prompts: `thinking`, and those of a chat template."""
    stop_words: tuple[str, ...] = ()
    notes: list[str]
    """Sentences for the user about things that are unusual but allowed."""

    def __init__(self, path: str, how: How):
        self.tokenizer = tokenizer.load(path)
        tokenizer.check_marks(self.tokenizer)
        self.controls = {} if how.allow_special else tokenizer.control_tokens(self.tokenizer)
        self.stop_token_ids: list[int] = []
        self.eos_id = self.tokenizer.eos_token_id
        self.notes = []

    def encode(self, example: Example) -> tuple[list[int], str]:
        """Returns the token ids and the text of the prompt. Raises ValueError if the template rejects the example."""
        return tokenizer.encode(self.tokenizer, self.pieces(example), self.eos_id, self.controls)

    def pieces(self, example: Example) -> list[Segment]:
        """Returns the rendered prompt as segments, which mark the parts that come from the data."""
        raise NotImplementedError


class TemplateEncoder(Encoder):
    """Encodes examples with an entry of a template file."""

    def __init__(self, path: str, how: How):
        self.template, self.thinking = templates.load(how.templates, how.template), how.thinking
        if how.arguments:
            raise UserError(
                f"template_arguments = {how.arguments}: apply only to the tokenizer's own chat template, but template "
                f'= {how.template!r}; remove them, or set template = "{CHAT}"'
            )
        super().__init__(path, how)
        template = self.template
        self.path, self.stop_words = how.templates, template.stop_words
        self.digest = templates.prompts_digest(template, self.thinking)
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
    """Encodes examples with the tokenizer's own chat template, with the generation prompt at the end."""

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
        """Returns the prompt as one segment, which states the spans that come from the data.

        Control tokens that are spelled out in these spans are encoded as ordinary text.
        """
        messages = [{"role": "system", "content": example.system}] if example.system else []
        for asked, answered in example.history:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": example.question})
        plain = self._rendered(messages)
        text, given = self._filled(messages, strip=False)
        if text != plain:  # many templates strip white space from the messages
            text, given = self._filled(messages, strip=True)
        if text != plain:
            raise ValueError(
                "the tokenizer's chat template changes the text of a message, so its place in the prompt is unknown"
            )
        return [Segment("text", text, tuple(given))]

    def _filled(self, messages: list[dict[str, str]], *, strip: bool) -> tuple[str, list[tuple[int, int]]]:
        """Returns the prompt, and the (start, stop) spans of the messages in it.

        The template is rendered with placeholders, which are then replaced by the texts of the messages.
        """
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
            raise ValueError(f"the tokenizer's chat template rejects the messages ({error})") from None

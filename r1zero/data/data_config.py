"""The configuration of preprocess.py: the files in configs/data/."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from r1zero.config import LocalPath, OwnFunction, UserError
from r1zero.data import templates
from r1zero.data.handlers import MapKeys
from r1zero.data.selection import Selection

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of several inputs. What it leaves out is taken from the keys of the same name outside of [sources]."""

    input: LocalPath
    """As `input` of the whole file."""
    weight: float | None = None
    """Share of this source in the prompts, relative to the weights of the others. As many prompts are kept as possible
    without using one twice, or selection.sample of them. Unset in all sources: every prompt is kept."""
    handler: OwnFunction = ""
    map_keys: MapKeys | None = None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The configuration of preprocess.py, a file in configs/data/."""

    input: LocalPath = ""
    """A .json, .jsonl, .parquet or .arrow file, or a folder of them, which are read in order of name; or a folder that
    `save_to_disk` of the library datasets wrote, of which the folder of one split."""
    sources: dict[str, Source] = field(default_factory=dict)
    """Several inputs instead of `input`, by name. The mean reward of each is then a metric of its own."""
    tokenizer: LocalPath
    """Folder of the model to train. The token ids are valid only for that model."""
    output: LocalPath
    """Folder to write. An earlier output of preprocess.py is replaced."""
    template: str
    """Name of an entry in `templates`, or "chat" for the tokenizer's own chat template."""
    templates: LocalPath = str(templates.SHIPPED)
    """A template file in MindSpeed-RL's format."""
    enable_thinking: bool = False
    """For reasoning templates such as qwen3. false: the prompt ends with an empty thought. A chat template receives
    it as an argument."""
    template_arguments: dict[str, Any] = field(default_factory=dict)
    """Additional arguments for the tokenizer's own chat template."""
    handler: OwnFunction = "columns"
    """columns, gsm8k, messages, or a handler of your own as path.py:function (signature: r1zero/data/handlers.py)."""
    map_keys: MapKeys | None = None
    """Must be set, here or in each of the sources."""
    dataset_additional_keys: tuple[str, ...] = ()
    """Additional columns to keep with each prompt."""
    allow_special_tokens: bool = False
    """true: a control token that the data spells, such as <|im_end|> in a question, becomes that token.
    false: it is encoded as ordinary text."""
    max_prompt_tokens: int = 1024
    """Longer prompts are omitted and counted. At most rollout.max_prompt_tokens of the training config."""
    selection: Selection = field(default_factory=Selection)


def parts(cfg: DataConfig) -> dict[str, DataConfig]:
    """Returns the config of each source by its name, or of the only input with an empty name.

    Raises UserError if the config has no input, or names it in two ways.
    """
    if bool(cfg.input) == bool(cfg.sources):
        if cfg.input:
            raise UserError(f"input = {cfg.input!r} is set beside [sources]; remove one of them")
        raise UserError("input is missing; name the data to read, or several inputs in sections [sources.NAME]")
    _check(cfg.sources)
    own = {
        name: dataclasses.replace(
            cfg, input=one.input, handler=one.handler or cfg.handler, map_keys=one.map_keys or cfg.map_keys
        )
        for name, one in cfg.sources.items()
    }
    return own or {"": cfg}


def _check(sources: dict[str, Source]) -> None:
    """Raises UserError about a name or a weight."""
    for name, one in sources.items():
        if not _NAME.fullmatch(name):
            raise UserError(
                f"sources.{name}: the name must consist of letters, digits, '_' and '-', because it names a metric"
            )
        if one.weight is not None and not 0 < one.weight < float("inf"):
            raise UserError(f"sources.{name}.weight = {one.weight}; it must be more than 0")
    unset = [name for name, one in sources.items() if one.weight is None]
    if unset and len(unset) < len(sources):
        raise UserError(f"sources.{unset[0]} has no weight, but others have; give all of them a weight, or none")

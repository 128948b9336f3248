"""Greedy answers of a saved model with plain transformers: how many problems it solves, and one example."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.columns import Columns
from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.progress import Progress
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1zero.config import UserError
from r1zero.miniature import problems
from r1zero.reward.rules import base_acc

MAX_NEW_TOKENS = 64
BATCH = 100


@dataclass(frozen=True)
class Answered:
    """A problem with its right answer and a model's response."""

    problem: str
    answer: str
    response: str

    @property
    def solved(self) -> bool:
        """Whether `base_acc` rewards it. Answers have no signs or leading zeros, so comparing texts is enough."""
        return base_acc(self.response, lambda content: content.strip() == self.answer) == 1.0


def responses(folder: Path, rows: list[dict[str, str]], progress: Progress) -> list[Answered]:
    """Returns greedy answers of at most MAX_NEW_TOKENS tokens, computed in fp32 from the saved weights."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: name a folder in Hugging Face's format")
    encode = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    done: list[Answered] = []
    for start in progress.track(range(0, len(rows), BATCH), description=escape(str(folder))):
        batch = rows[start : start + BATCH]
        asked = encode([problems.prompt(row["problem"]) for row in batch], return_tensors="pt", padding=True)
        written = model.generate(**asked, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = encode.batch_decode(written[:, asked.input_ids.shape[1] :], skip_special_tokens=True)
        done += [Answered(row["problem"], row["answer"], text) for row, text in zip(batch, texts, strict=True)]
    return done


def card(title: str, answered: Answered) -> Panel:
    """Returns a panel with one model's response, in green or red, with dimmed tags."""
    text = Text(answered.response or "(nothing)")
    text.highlight_regex(r"</?(think|answer)>", "dim")
    text.highlight_regex(r"\\boxed\{[^}]*\}", "bold")
    mark, colour = ("right", "green") if answered.solved else ("not solved", "red")
    return Panel(text, title=f"{title}: {mark}", border_style=colour, width=58, padding=(1, 2))


def before_and_after(before: Answered, after: Answered) -> Group:
    """Returns two models' responses to the same problem, side by side."""
    question = Text(f"Question: {before.problem}=?   (answer {before.answer}, never seen in training)", style="bold")
    return Group(question, Columns([card("before", before), card("after", after)]))

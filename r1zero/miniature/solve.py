"""Greedy answers of a saved model by plain transformers: how many problems it solves, and one of them to look at."""

from dataclasses import dataclass
from pathlib import Path

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
    problem: str
    answer: str
    response: str

    @property
    def solved(self) -> bool:
        """What `base_acc` rewards. Answers are numbers without signs or zeros in front, so equal is equal as text."""
        return base_acc(self.response, lambda content: content.strip() == self.answer) == 1.0


def responses(folder: Path, rows: list[dict[str, str]], progress: Progress) -> list[Answered]:
    """Greedy, at most MAX_NEW_TOKENS each; the weights as saved, multiplied in fp32."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: name a folder in Hugging Face's format")
    encode = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    done: list[Answered] = []
    for start in progress.track(range(0, len(rows), BATCH), description=escape(str(folder))):
        batch = rows[start : start + BATCH]
        asked = encode([problems.prompt(row["problem"]) for row in batch], return_tensors="pt", padding=True)
        written = model.generate(**asked, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = encode.batch_decode(written[:, asked.input_ids.shape[1] :], skip_special_tokens=True)
        done += [Answered(row["problem"], row["answer"], text) for row, text in zip(batch, texts, strict=True)]
    return done


def card(title: str, answered: Answered) -> Panel:
    """One model's response, its four tags dim, framed in green or red."""
    text = Text(answered.response or "(nothing)")
    text.highlight_regex(r"</?(think|answer)>", "dim")
    text.highlight_regex(r"\\boxed\{[^}]*\}", "bold")
    mark, colour = ("right", "green") if answered.solved else ("not solved", "red")
    return Panel(text, title=f"{title}: {mark}", border_style=colour, width=58, padding=(1, 2))


def before_and_after(before: Answered, after: Answered) -> Group:
    question = Text(f"Question: {before.problem}=?   (answer {before.answer}, never seen in training)", style="bold")
    return Group(question, Columns([card("before", before), card("after", after)]))

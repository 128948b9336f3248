"""How often each prompt was answered correctly: what an evaluation writes and preprocess.py filters and orders by.

One JSON line for each prompt: source (file:line), text (the rendered prompt), label, samples, correct, pass_rate.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from r1zero.batch import Prompt
from r1zero.config import UserError, read_text

CURE = "name a pass_rates.jsonl that an evaluation wrote"

Rates = dict[tuple[str, str], float]
"""(rendered prompt, label) -> share of correct responses."""


def write(path: Path, rows: Iterable[tuple[str, Prompt, int, int]]) -> None:
    """rows: source, prompt, number of responses and number of correct ones. The file is replaced as a whole."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        for source, prompt, samples, correct in rows:
            line = {
                "source": source,
                "text": prompt.text,
                "label": prompt.label,
                "samples": samples,
                "correct": correct,
                "pass_rate": correct / samples,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    aside.replace(path)


def read(path: str) -> Rates:
    """Raises UserError for a file that `write` did not write."""
    rates: Rates = {}
    for number, line in enumerate(read_text(path, CURE).split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            rates[str(row["text"]), str(row["label"])] = float(row["pass_rate"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{path}:{number}: is no line of pass rates ({error}); {CURE}") from None
    return rates

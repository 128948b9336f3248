"""Files of pass rates, which state how often each prompt was answered correctly.

An evaluation writes them, and preprocess.py can filter and order prompts by them. There is one JSON line per prompt,
with source (file:line), text (the rendered prompt), label, samples and correct (numbers of responses), and pass_rate.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from r1zero.batch import Prompt
from r1zero.config import UserError, read_text

CURE = "name a pass_rates.jsonl file that an evaluation wrote"

Rates = dict[tuple[str, str], float]
"""(rendered prompt, label) -> share of correct responses, from 0 to 1."""


def write(path: Path, rows: Iterable[tuple[str, Prompt, int, int]]) -> None:
    """Write a file of pass rates. An existing file is replaced only once the new one is complete.

    rows: (source, prompt, number of responses, number of correct responses).
    """
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
    """Returns the pass rates in a file. Raises UserError if it cannot be read, or if `write` did not write it."""
    rates: Rates = {}
    for number, line in enumerate(read_text(path, CURE).split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            rates[str(row["text"]), str(row["label"])] = float(row["pass_rate"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{path}:{number}: is not a line of pass rates ({error}); {CURE}") from None
    return rates

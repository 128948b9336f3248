"""Turn data into prompts: `python preprocess.py CONFIG [key=value ...] [--check-labels]`.

The formats are described in r1zero/data/.
"""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from r1zero import config
from r1zero.data import data_config, labels, prepare, tokenizer
from r1zero.data.prompts import PromptSet
from r1zero.reward import RewardError, check_labels


def main(arguments: list[str] | None = None) -> int:
    """Run the program. arguments: those of the command line if None. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Read problems and write tokenised prompts.")
    parser.add_argument("config", help="a file in configs/data/")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="override one key of the file, for example map_keys.prompt=question",
    )
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="print the first N prompts with special tokens marked"
    )
    parser.add_argument(
        "--check-labels",
        action="store_true",
        help="grade each label, and each solution against its label, as training will",
    )
    options = parser.parse_intermixed_args(arguments)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        cfg = config.load(options.config, options.overrides, data_config.DataConfig)
        report = _run(cfg, console)
        _show(cfg, report, console)
        if options.show > 0:
            _show_prompts(cfg, options.show, console)
        if options.check_labels:
            _check_labels(cfg, report.counts.kept + report.counts.too_long, console)
    except (config.UserError, RewardError) as error:
        console.print(f"preprocess.py: {error}", markup=False)
        return 2
    return 0


def _run(cfg: data_config.DataConfig, console: Console) -> prepare.Report:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rows]}"),
    )
    with Progress(*columns, console=console) as bar:
        tasks: dict[Path, TaskID] = {}

        def progress(file: Path, share: float, counts: prepare.Counts) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(escape(file.name), total=1.0, rows="")
            bar.update(tasks[file], completed=share, rows=f"{counts.kept} of {counts.rows} rows kept")

        return prepare.prepare(cfg, progress)


def _check_labels(cfg: data_config.DataConfig, count: int, console: Console) -> None:
    with Progress(console=console, transient=True) as bar:
        rows = bar.track(labels.rows(cfg), total=count, description="labels")
        checked = check_labels(rows, workers=len(os.sched_getaffinity(0)), deadline_s=config.Reward().deadline_s)
    report = Path(cfg.output) / labels.REPORT
    report.write_text("\n".join(checked.lines()) + "\n", encoding="utf-8", errors="backslashreplace")
    for line in checked.summary(str(report)):
        console.print(line, markup=False)


def _show_prompts(cfg: data_config.DataConfig, count: int, console: Console) -> None:
    """The first prompts as the model will see them, special tokens in colour and between the signs that they have."""
    prompts = PromptSet.open(cfg.output)
    special = tokenizer.control_tokens(tokenizer.load(cfg.tokenizer)).values()
    for i in range(min(count, len(prompts))):
        prompt = prompts[i]
        text = Text(prompt.text)
        text.highlight_words([word for word in special if word], "bold magenta")
        title = f"prompt {i + 1} of {len(prompts)}, {len(prompt.token_ids)} tokens, {prompts.source(i)}"
        console.rule(escape(title), align="left")
        console.print(text)
        console.print(f"label: {prompt.label}", markup=False)


def _show(cfg: data_config.DataConfig, report: prepare.Report, console: Console) -> None:
    counts = report.counts
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    for complaint in report.complaints:
        console.print(f"bad row: {complaint}", markup=False)
    if counts.bad > len(report.complaints):
        console.print(
            f"... and {counts.bad - len(report.complaints)} more in {cfg.output}/rejected.jsonl", markup=False
        )
    table = Table(title=escape(f"{cfg.output}, template {cfg.template}"), title_justify="left", show_header=False)
    table.add_row("rows", str(counts.rows))
    counted = [("kept", counts.kept), ("too long", counts.too_long), ("bad", counts.bad)]
    counted += [("left out by [selection]", counts.left_out)] if counts.left_out else []
    for name, count in counted:
        table.add_row(escape(name), str(count), f"{count / counts.rows:.2%}")
    for name, count in report.by_source.items() if len(cfg.sources) > 1 else ():
        table.add_row(escape(f"kept of {name}"), str(count), f"{count / counts.kept:.2%}")
    for name, tokens in report.percentiles().items():
        table.add_row(f"tokens {name}", str(tokens))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())

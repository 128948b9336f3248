"""Makes a page about runs: `python -m r1zero.report runs/NAME [runs/OTHER ...] [-o FILE.html] [--published]`."""

import argparse
import sys
from pathlib import Path

from r1zero.config import UserError, reason
from r1zero.report import page, runs


def main(arguments: list[str]) -> int:
    """Write the page that the arguments ask for. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m r1zero.report", description=page.__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="runs/NAME", help="folders of the runs to show")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.html", help="file to write; default: report.html in the first folder"
    )
    parser.add_argument(
        "--published", action="store_true", help="also draw the published curves of DeepSeek-R1-Zero-671B"
    )
    options = parser.parse_args(arguments)
    output = options.output or options.folders[0] / "report.html"
    try:
        text = page.render([runs.read(folder) for folder in options.folders], options.published)
        _write(output, text)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"wrote {output}\n")
    return 0


def _write(output: Path, text: str) -> None:
    aside = output.with_name(output.name + ".tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(output)
    except OSError as error:
        raise UserError(f"-o {output}: cannot be written ({reason(error)}); name another file") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

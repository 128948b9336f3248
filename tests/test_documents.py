"""The documents name only files, functions, sections and config keys that exist.

python -m pytest tests/test_documents.py
"""

import ast
import dataclasses
import os
import re
import typing
from functools import cache
from pathlib import Path

import pytest

from r1zero.config import Config, Grpo, Reward, Train
from r1zero.data.prepare import DataConfig
from r1zero.evaluation import figures
from r1zero.observability import step_metrics
from r1zero.observability.alarms import KINDS
from r1zero.observability.metrics import MetricReducer
from r1zero.reward.rules import RULES

ROOT = Path(__file__).parents[1]
TRANSLATIONS = {"launch/README.zh-CN.md": "README.md", "launch/TROUBLESHOOTING.zh-CN.md": "launch/TROUBLESHOOTING.md"}
TROUBLESHOOTING = ["launch/TROUBLESHOOTING.md", "launch/TROUBLESHOOTING.zh-CN.md"]
DOCUMENTS = ["README.md", "launch/README.md", "launch/REVIEW.md", "launch/TROUBLESHOOTING.md", *TRANSLATIONS]
COMMENTED = [
    *DOCUMENTS,
    "requirements.txt",
    *(
        str(path.relative_to(ROOT))
        for pattern in ("configs/**/*.toml", "launch/*.sh", "launch/*.txt", "launch/Dockerfile.*")
        for path in sorted(ROOT.glob(pattern))
    ),
]
MADE = ("configs/data/own.toml", "configs/grpo_")
"""What a reader is to make, or another project's."""
PATH = re.compile(r"(?<![\w./~+-])((?:r1zero|tests|configs|launch)/[\w./*-]+|(?:train|convert|preprocess)\.py)")
SYMBOL = re.compile(r"((?:r1zero|tests)/[\w/]+\.py):([A-Za-z_][\w.]*)")


@pytest.mark.parametrize("document", COMMENTED)
def test_the_files_that_a_document_names_exist(document: str) -> None:
    named = {match.rstrip(".") for match in PATH.findall((ROOT / document).read_text(encoding="utf-8"))}
    missing = [path for path in sorted(named) if not path.startswith(MADE) and not list(ROOT.glob(path))]
    assert not missing


def defined(tree: ast.AST) -> set[str]:
    """The functions, classes and constants of a module, and the methods of its classes as Class.method."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner}" for inner in defined(node)}
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_symbols_that_a_document_names_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    missing = [
        f"{path}:{symbol}"
        for path, symbol in SYMBOL.findall(text)
        if symbol not in defined(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    ]
    assert not missing


def config_keys(cls: type, prefix: str = "") -> set[str]:
    """Every key of a config as `section.key`, with `*` for a name that the user chooses."""
    keys = set()
    for name, kind in typing.get_type_hints(cls).items():
        keys.add(f"{prefix}{name}")
        for inner in [kind, *typing.get_args(kind)]:
            if dataclasses.is_dataclass(inner):
                section = f"{prefix}{name}.*" if typing.get_origin(kind) is dict else f"{prefix}{name}"
                keys |= {section} | config_keys(inner, f"{section}.")
    return keys


def migration_tables(text: str) -> dict[str, str]:
    """The other trainer's name -> the table from its keys to ours."""
    found = re.findall(r"((?:^\| (MindSpeed-RL|verl|TRL) \|.*\n)(?:^\|.*\n)+)", text, re.MULTILINE)
    return {name: table for table, name in found}


FOREIGN = re.compile(r"^\|[^|]*\|", re.MULTILINE)
"""The first column of a table, which in the tables about other trainers has their keys."""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_config_keys_that_a_document_names_exist(document: str) -> None:
    known = config_keys(Config)
    sections = "|".join(name for name in known if "." not in name)
    text = (ROOT / document).read_text(encoding="utf-8")
    for table in migration_tables(text).values():
        text = text.replace(table, FOREIGN.sub("|", table))
    named = re.findall(rf"(?<![\w./])((?:{sections})(?:\.[a-z_0-9]+)+)", text)
    files = (".py", ".toml", ".json", ".jsonl", ".parquet", ".png")
    keys = re.compile("|".join(re.escape(key).replace(r"\*", r"[\w-]+") for key in known))
    assert not [
        key for key in named if not keys.fullmatch(key) and not key.endswith(files) and "plan.assume" not in key
    ]


@pytest.mark.parametrize("document", ["README.md", "launch/README.zh-CN.md"])
@pytest.mark.parametrize("trainer", ["MindSpeed-RL", "verl", "TRL"])
def test_the_keys_beside_those_of_another_trainer_exist(document: str, trainer: str) -> None:
    """Each piece of code in the second column is a key, the last part of one, a value, a file, or the other's key."""
    table = migration_tables((ROOT / document).read_text(encoding="utf-8"))[trainer]
    keys = config_keys(Config) | config_keys(DataConfig)
    ends = keys | {key.rpartition(".")[2] for key in keys}
    rows = [row.strip("|").split(" | ") for row in table.splitlines()[2:]]
    assert len(rows) > 10 and all(len(row) == 2 for row in rows)
    unknown = []
    for theirs, ours in rows:
        for one in re.findall(r"`([^`]+)`", ours):
            key = re.sub(r"<\w+>", "*", one.split(" = ")[0].partition(" ")[0].strip("[]"))
            if not (key in ends or one.startswith('"') or one in theirs or (ROOT / one).exists()):
                unknown.append(one)
    assert unknown in ([], ["path.py:function"])


@cache
def metric_names() -> frozenset[str]:
    """Every metric that a run can have, from the functions that compute them and the phases that are timed."""
    cfg = Config(
        reward=Reward(rules=dict.fromkeys(RULES, 1.0)),
        grpo=Grpo(dynamic_sampling=True, rollout_correction="truncate"),
        train=Train(routing_replay=True),
    )
    reducer = MetricReducer()
    step_metrics.add_samples(reducer, cfg, None, None, datasets=("NAME",))
    step_metrics.add_update(reducer, {})
    sums = dict.fromkeys(reducer.sums, 1.0)
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "r1zero").rglob("*.py")))
    timings = {f"timing/{name}": 1.0 for name in ("all", *re.findall(r"\.phase\(\"(\w+)\"\)", sources))}
    return frozenset(
        {
            *step_metrics.step_metrics(cfg, sums, dict.fromkeys(reducer.peaks, 1.0), 1.0),
            *step_metrics.rounds(cfg, 1, 1.0),
            *step_metrics.speeds(sums, timings, 1),
            *re.findall(r"\"(parity/\w+)\":", (ROOT / "r1zero/guard/parity.py").read_text(encoding="utf-8")),
            *(f"alarm/{kind}" for kind in KINDS),
            *(f"eval/*/{name}" for name in figures.names(32)),
        }
    )


def code(document: str) -> list[str]:
    """The pieces of a document that are set in code, outside of blocks; some are broken over two lines."""
    text = re.sub(r"^ {4}.*$", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", text)]


def is_metric(name: str) -> bool:
    return re.sub(r"^(eval/)[^/]+", r"\1*", name) in metric_names()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_metrics_that_a_document_names_exist(document: str) -> None:
    groups = {name.split("/")[0] for name in metric_names() if "/" in name}
    named = [one for one in code(document) if "/" in one and one.split("/")[0] in groups]
    assert not [one for one in named if not is_metric(one) and not one.endswith(("/", "/..."))]


@pytest.mark.parametrize("document", TROUBLESHOOTING)
def test_all_that_the_page_on_troubleshooting_names_exists(document: str) -> None:
    """Each piece of code is a metric, a config key, a command, a file, or a word that the program's sources contain."""
    keys = config_keys(Config) | config_keys(DataConfig)
    programs = [*(ROOT / "r1zero").rglob("*.py"), *ROOT.glob("*.py"), ROOT / "configs/model/templates.json"]
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted(programs))
    unknown = []
    for one in code(document):
        key = re.sub(r"<\w+>", "*", one.split(" = ")[0].strip("[]"))
        if not (is_metric(one) or key in keys or one.startswith("python ") or (ROOT / one).exists() or one in sources):
            unknown.append(one)
    assert not unknown
    first_lines = re.findall(r"^## .*\n\n(.*)$", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
    looked_at = [re.findall(r"`([^`]+)`", line) for line in first_lines]
    assert all(looked_at) and not [one for line in looked_at for one in line if not is_metric(one)]


def headings(text: str) -> list[tuple[str, str]]:
    """The signs of each heading, such as "##", and its anchor."""
    found = re.findall(r"^(#+) (.*)$", text, re.MULTILINE)
    return [(level, re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")) for level, heading in found]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    anchors = {anchor for _, anchor in headings(text)}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        assert ((ROOT / document).parent / file).exists() if file else anchor in anchors, target


def links(document: str) -> list[str]:
    """Where each link of a document leads: a path from the root of the repository, or the number of a heading."""
    text = (ROOT / document).read_text(encoding="utf-8")
    numbers = {f"#{anchor}": f"heading {number}" for number, (_, anchor) in enumerate(headings(text))}
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [numbers.get(one) or os.path.normpath(os.path.join(os.path.dirname(document), one)) for one in targets]


@pytest.mark.parametrize("translation", TRANSLATIONS)
def test_a_translation_has_the_structure_of_its_original(translation: str) -> None:
    original = TRANSLATIONS[translation]
    one, other = ((ROOT / document).read_text(encoding="utf-8") for document in (original, translation))
    assert [level for level, _ in headings(one)] == [level for level, _ in headings(other)]
    blocks = re.compile(r"^ {4}.*$", re.MULTILINE)
    assert blocks.findall(one) == blocks.findall(other)
    assert sorted(code(original)) == sorted(TRANSLATIONS.get(name, name) for name in code(translation))
    table = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
    rows = [[rows.count("\n") for rows in table.findall(text)] for text in (one, other)]
    assert rows[0] == rows[1]
    # The first link of each leads to the other one. A sentence may have its links in another order.
    assert links(original)[0] == translation and links(translation)[0] == original
    # A translation may link to the translations of other documents.
    assert sorted(links(original)[1:]) == sorted(TRANSLATIONS.get(one, one) for one in links(translation)[1:])


def test_every_script_and_folder_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    folders = [path.name for path in (ROOT / "r1zero").iterdir() if path.is_dir() and path.name != "__pycache__"]
    modules = [path.name for path in (ROOT / "r1zero").glob("*.py") if path.name != "__init__.py"]
    assert not [name for name in [*(f"{folder}/" for folder in folders), *modules] if name not in text]

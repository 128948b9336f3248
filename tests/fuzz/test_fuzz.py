"""Whatever a user writes, the answer is a value or one sentence that says where; never a traceback."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1zero import config
from r1zero.config import Config, UserError, limits
from r1zero.data import handlers, prepare, records, store, templates, tokenizer
from r1zero.data.handlers import MapKeys
from r1zero.data.prompts import PromptSet
from r1zero.distributed import layout
from tests.fuzz.strategies import TEXT, VALUES, damaged, replaced

ROOT = Path(__file__).parent.parent.parent
GOOD = {name: (ROOT / "configs" / name).read_bytes() for name in ("cpu.toml", "a3.toml")}
TEMPLATES = json.loads((ROOT / "configs" / "model" / "templates.json").read_text())
NAMES = [
    f"{section.name}.{f.name}"
    for section in dataclasses.fields(Config)
    for f in dataclasses.fields(section.default_factory())
]
ROWS = [{"problem": "What is 1+1?", "answer": "2"}, {"problem": "Half of 3?", "answer": 1.5, "solution": "3/2"}]
KEYS = MapKeys(prompt="problem", response="answer", query="extra.query", history="history", system="system")


def property_of(strategy, examples):
    """A property test in two sizes: the short one that runs always, and one marked `long` with forty times its
    examples."""

    def both(check):
        def sized(count):
            quick = settings(
                max_examples=count,
                deadline=None,
                database=None,
                derandomize=count == examples,
                suppress_health_check=list(HealthCheck),
            )
            return quick(given(strategy)(check))

        @pytest.mark.parametrize(
            "run",
            [
                pytest.param(sized(examples), id="short"),
                pytest.param(sized(40 * examples), id="long", marks=pytest.mark.long),
            ],
        )
        def test(run):
            run()

        return test

    return both


@pytest.fixture(scope="module", autouse=True)
def folder():
    """One folder for all examples, as hypothesis knows no fixtures of an example."""
    global FOLDER
    with tempfile.TemporaryDirectory() as made:
        FOLDER = Path(made)
        yield


def sentence(error, *places):
    """One line for people, that names one of the places."""
    said = str(error)
    assert said and "\n" not in said.strip() and "Traceback" not in said, said
    assert any(place in said for place in places), f"{said!r} names none of {places}"


def load_config(data, overrides):
    path = FOLDER / "c.toml"
    path.write_bytes(data)
    try:
        cfg = config.load(str(path), overrides, Config)
        limits.check(cfg)
        again = FOLDER / "again.toml"
        again.write_text(config.dump(cfg), encoding="utf-8")
        assert config.load(str(again), [], Config) == cfg
        layout.check_batch(cfg, layout.carve(cfg.layout, 384))
    except UserError as error:
        sentence(
            error, str(path), "argument", *NAMES, "layout.", "ranks", "reward.rules", "plan.assume", "responses for"
        )


OVERRIDES = st.lists(
    TEXT
    | st.builds(
        "{}={}".format,
        st.sampled_from(NAMES) | TEXT,
        TEXT
        | st.sampled_from(
            [
                "1",
                "-1",
                "nan",
                "inf",
                "1e400",
                "[1]",
                "{a=1}",
                '"x',
                "true",
                "1979-05-27",
                "0x7fffffffffffffffff",
                "1\ny=2",
                "'''",
                "9" * 5000,
                "0x" + "f" * 5000,
                "[0x" + "f" * 5000 + "]",
            ]
        ),
    ),
    max_size=3,
)


@property_of(st.tuples(st.binary(max_size=60) | st.sampled_from(list(GOOD.values())).flatmap(damaged), OVERRIDES), 150)
def test_a_toml_file_of_noise_and_arguments_of_any_kind(case):
    load_config(*case)


def toml_bytes(tree):
    try:
        return tomli_w.dumps(tree).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, AttributeError):  # None, and keys that are no texts, have no TOML
        return b""


@property_of(
    st.sampled_from([config.plain(config.load(str(ROOT / "configs" / n), [], Config)) for n in GOOD]).flatmap(replaced),
    150,
)
def test_well_formed_toml_with_a_wrong_value_somewhere(tree):
    load_config(toml_bytes(tree), [])


def load_templates(data, name, question):
    path = FOLDER / "t.json"
    path.write_bytes(data)
    try:
        found = templates.load(str(path), name)
    except UserError as error:
        sentence(error, str(path))
        return
    for piece in templates.render(found, question, "", (("earlier", "answer"),), False):
        piece.text.encode("utf-8")


ENTRIES = st.sampled_from([[e] for e in TEMPLATES if len(e) > 3])


@property_of(
    ENTRIES.flatmap(
        lambda e: st.tuples(
            damaged(json.dumps(e).encode())
            | replaced(e).map(lambda t: json.dumps(t).encode())
            | VALUES.map(lambda v: json.dumps(v).encode()),
            st.just(e[0]["name"]),
        )
    ),
    200,
)
def test_a_template_file_that_is_damaged_or_has_a_wrong_value_somewhere(case):
    load_templates(*case, question="What is {{content}} of {{idx}}?")


def read_rows(path):
    """Every row is an example or a reason, until a sentence about the file."""
    try:
        for record in records.read(path):
            assert record.line >= 1 and str(path) in record.source
            found = record.problem or handlers.apply(handlers.HANDLERS["columns"], record.value, KEYS)
            assert (isinstance(found, str) and found) or (found.question.strip() and found.label.strip())
    except UserError as error:
        sentence(error, str(path))


LINES = "\n".join(map(json.dumps, ROWS)).encode()


@property_of(
    st.tuples(
        st.sampled_from([".json", ".jsonl"]),
        st.binary(max_size=80)
        | damaged(LINES)
        | damaged(json.dumps(ROWS).encode())
        | replaced(ROWS).map(lambda t: json.dumps(t).encode())
        | VALUES.map(lambda v: json.dumps(v).encode()),
    ),
    250,
)
def test_json_data_of_any_kind(case):
    path = FOLDER / f"rows{case[0]}"
    path.write_bytes(case[1])
    read_rows(path)


def parquet_bytes(rows):
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@property_of(damaged(parquet_bytes([{"problem": f"What is {i}+1?", "answer": str(i + 1)} for i in range(20)])), 100)
def test_a_parquet_file_that_is_damaged(data):
    path = FOLDER / "rows.parquet"
    path.write_bytes(data)
    read_rows(path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from r1zero.miniature.tokenizer import build

    made = tmp_path_factory.mktemp("prepared")
    build().save_pretrained(made / "base")
    (made / "rows.jsonl").write_bytes(LINES)
    overrides = [f"input={made}/rows.jsonl", f"tokenizer={made}/base", f"output={made}/data"]
    prepare.prepare(
        config.load(
            str(ROOT / "configs/data/quickstart.toml"),
            [*overrides, "map_keys.prompt=problem", "map_keys.response=answer"],
            prepare.DataConfig,
        ),
        lambda *_: None,
    )
    return made


@pytest.mark.parametrize("examples", [60, pytest.param(2400, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", [store.META, store.PROMPTS])
def test_preprocessed_data_that_is_damaged(prepared, name, examples):
    good = (prepared / "data" / name).read_bytes()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == 60,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(good))
    def check(data):
        there = FOLDER / "data"
        shutil.copytree(prepared / "data", there, dirs_exist_ok=True)
        (there / name).write_bytes(data)
        try:
            prompts = PromptSet.open(str(there))
            prompts.check(prompts.meta["tokenizer"]["digest"])
            prompts.check_length(1 << 20)
            rows = [(prompts[i], prompts.source(i)) for i in range(len(prompts))]
        except UserError as error:
            sentence(error, str(there))
        else:
            assert name == store.META or data == good, "damage went unseen"
            assert all(row.token_ids and row.label for row, _ in rows)

    check()


@pytest.mark.parametrize("examples", [40, pytest.param(1600, marks=pytest.mark.long)])
def test_preprocessing_data_and_template_of_any_kind(prepared, examples):
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == 40,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(LINES) | replaced(ROWS).map(lambda t: json.dumps(t).encode()), ENTRIES.flatmap(replaced))
    def check(rows, entries):
        (FOLDER / "in.jsonl").write_bytes(rows)
        (FOLDER / "templates.json").write_text(json.dumps(entries))
        shutil.rmtree(FOLDER / "out", ignore_errors=True)
        cfg = prepare.DataConfig(
            input=str(FOLDER / "in.jsonl"),
            tokenizer=str(prepared / "base"),
            output=str(FOLDER / "out"),
            template=TEMPLATES[0]["name"],
            templates=str(FOLDER / "templates.json"),
            map_keys=MapKeys(prompt="problem", response="answer"),
        )
        try:
            prepare.prepare(
                dataclasses.replace(
                    cfg, template=str(entries[0].get("name", "x")) if isinstance(entries[0], dict) else "x"
                ),
                lambda *_: None,
            )
        except UserError as error:
            sentence(error, str(FOLDER), "map_keys", "stop", "token")
            assert not (FOLDER / "out").exists()

    check()


@pytest.mark.parametrize("examples", [40, pytest.param(1600, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_tokenizers_file_with_a_wrong_value_somewhere(prepared, name, examples):
    there = FOLDER / "tokenizer"
    shutil.copytree(prepared / "base", there, dirs_exist_ok=True)
    good = (
        (there / name).read_text()
        if (there / name).exists()
        else json.dumps({"eos_token_id": [256, 257], "top_p": 0.9})
    )

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == 40,
        suppress_health_check=list(HealthCheck),
    )
    @given(replaced(json.loads(good)).map(lambda t: json.dumps(t).encode()) | damaged(good.encode()))
    def check(data):
        (there / name).write_bytes(data)
        try:
            loaded = tokenizer.load(str(there))
            tokenizer.check_marks(loaded)
            tokenizer.stop_ids(loaded, [])
            tokenizer.digest(str(there))
        except UserError as error:
            sentence(error, str(there))

    check()
    (there / name).write_text(good)

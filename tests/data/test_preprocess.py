"""pytest tests/data/test_preprocess.py"""

import dataclasses
import json
import resource
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import preprocess
from r1zero import config
from r1zero.data import store, tokenizer
from r1zero.data.prepare import DataConfig
from r1zero.data.prompts import PromptSet
from tests.data.conftest import build_tokenizer

SAMPLES = Path("tests/inputs/prompts")


@pytest.fixture
def run(tokenizer_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs preprocess.py on CONFIG with overrides; gives its exit status, its words and the folder it writes."""

    def call(name: str, *overrides: str) -> tuple[int, str, Path]:
        output = tmp_path / "out"
        status = preprocess.main([name, f"tokenizer={tokenizer_path}", f"output={output}", *overrides])
        return status, capsys.readouterr().err, output

    return call


def left_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_jsonl_json_and_parquet_make_the_same_prompts(run, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (SAMPLES / "math.jsonl").read_bytes().splitlines()]
    (tmp_path / "math.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "math.parquet")
    made = []
    for file in (SAMPLES / "math.jsonl", tmp_path / "math.json", tmp_path / "math.parquet"):
        status, _, output = run("configs/data/math500.toml", f"input={file}", "max_prompt_tokens=4000")
        assert status == 0
        prompts = PromptSet.open(str(output))
        made.append([(prompts[i], prompts.additional(i)) for i in range(len(prompts))])
    assert made[0] == made[1] == made[2] and len(made[0]) == len(rows)
    assert [p.label for p, _ in made[0]] == [row["answer"] for row in rows]
    assert all(row["problem"] in p.text for (p, _), row in zip(made[0], rows, strict=True))
    assert made[0][0][1] == {
        "subject": rows[0]["subject"],
        "level": str(rows[0]["level"]),
        "unique_id": rows[0]["unique_id"],
    }


def test_the_quick_starts_prompt_is_exactly_this(run, tmp_path: Path, tokenizer_path: str) -> None:
    (tmp_path / "train.jsonl").write_text('{"problem": "7+8-3", "answer": "12"}\n')
    _, _, output = run("configs/data/quickstart.toml", f"input={tmp_path / 'train.jsonl'}")
    prompt = PromptSet.open(str(output))[0]
    assert (prompt.text, prompt.label) == ("Question: 7+8-3=?\nAssistant:\n", "12")
    assert tokenizer.load(tokenizer_path).decode(prompt.token_ids) == prompt.text


def test_a_list_of_deepscalers_layout_and_lines_of_gsm8ks_are_read_by_their_configs(run) -> None:
    status, _, output = run("configs/data/deepscaler.toml", f"input={SAMPLES / 'deepscaler.json'}")
    assert status == 0 and PromptSet.open(str(output))[0].text.startswith(
        "<bos>A conversation between User and Assistant."
    )
    status, _, output = run("configs/data/gsm8k.toml", f"input={SAMPLES / 'gsm8k.jsonl'}", "max_prompt_tokens=2000")
    prompts = PromptSet.open(str(output))
    assert status == 0 and [prompts[i].label for i in range(len(prompts))] == ["72", "10"]


def test_bad_rows_are_named_with_file_and_line_and_cost_only_themselves(run, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        b'{"problem": "1+1", "answer": 2}\n{"problem": "1+2"}\n{"problem": "1+3", "answ\n\xff\n'
        b'{"problem": "1+4", "answer": "5"}\n'
    )
    status, words, output = run("configs/data/quickstart.toml", f"input={file}")
    prompts = PromptSet.open(str(output))
    assert status == 0 and [(prompts[i].label, prompts.source(i)) for i in range(2)] == [
        ("2", f"{file}:1"),
        ("5", f"{file}:5"),
    ]
    assert f"bad row: {file}:2 has no 'answer'; the only column is 'problem'" in words
    assert f"bad row: {file}:3 is not JSON: Unterminated string" in words and f"bad row: {file}:4 is not UTF-8" in words
    rejected = [json.loads(line)["source"] for line in (output / store.REJECTED).read_bytes().splitlines()]
    assert rejected == [f"{file}:{n}" for n in (2, 3, 4)]
    assert prompts.meta["counts"] == {"rows": 5, "kept": 2, "too_long": 0, "bad": 3, "left_out": 0}


def test_prompts_over_the_limit_are_left_out_and_counted(run, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"problem": "1" * n, "answer": "1"}) + "\n" for n in (1, 5, 6, 40)))
    exactly = len("Question: 11111=?\nAssistant:\n") - 1  # ": " is one token of the test's tokenizer
    status, words, output = run("configs/data/quickstart.toml", f"input={file}", f"max_prompt_tokens={exactly}")
    prompts = PromptSet.open(str(output))
    assert status == 0 and [len(prompts[i].token_ids) for i in range(len(prompts))] == [exactly - 4, exactly]
    assert prompts.meta["counts"] == {"rows": 4, "kept": 2, "too_long": 2, "bad": 0, "left_out": 0}
    assert prompts.meta["tokens"] == {
        "p0": exactly - 4,
        "p50": exactly,
        "p90": exactly + 35,
        "p99": exactly + 35,
        "p100": exactly + 35,
    }
    assert f"{file}:3" in (output / store.REJECTED).read_text() and "too long" in words


def test_the_meta_names_a_command_that_shows_the_first_rows(run, tmp_path: Path) -> None:
    _, _, output = run("configs/data/math500.toml", f"input={SAMPLES / 'math.jsonl'}")
    command = json.loads((output / store.META).read_text(encoding="utf-8"))["inspect"]
    shown = subprocess.run(
        ["bash", "-c", command.replace("python", sys.executable, 1)], capture_output=True, text=True, check=True
    ).stdout
    assert len(shown.splitlines()) == 3 and "'label': '\\\\left( 3, \\\\frac{\\\\pi}{2} \\\\right)'" in shown


def test_stop_words_become_ids_and_what_made_the_data_is_recorded(run, tokenizer_path: str) -> None:
    _, _, output = run("configs/data/math500.toml", f"input={SAMPLES / 'math.jsonl'}")
    meta = PromptSet.open(str(output)).meta
    assert meta["stop_token_ids"] == [tokenizer.load(tokenizer_path).convert_tokens_to_ids("<|im_end|>")]
    assert meta["tokenizer"]["digest"] == tokenizer.digest(tokenizer_path) and meta["template"]["name"] == "qwen_r1"
    assert [s["sha256"] for s in meta["sources"]] == [store.file_digest(SAMPLES / "math.jsonl")]


HANDLER = (
    "def take(record, keys):\n    if record['answer'] == 'stop':\n        raise KeyboardInterrupt\n"
    "    return record['problem'], record['answer']\n"
)


def test_an_interrupted_run_leaves_the_former_output_and_nothing_else(run, tmp_path: Path) -> None:
    file, own = tmp_path / "rows.jsonl", tmp_path / "own.py"
    own.write_text(HANDLER)
    rows = [{"problem": str(n), "answer": str(n)} for n in range(3000)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:7]))
    assert run("configs/data/quickstart.toml", f"input={file}", f"handler={own}:take")[0] == 0
    before = left_in(tmp_path)
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"problem": "x", "answer": "stop"}]))
    with pytest.raises(KeyboardInterrupt):
        run("configs/data/quickstart.toml", f"input={file}", f"handler={own}:take")
    assert left_in(tmp_path) == before and len(PromptSet.open(str(tmp_path / "out"))) == 7


def test_a_second_run_replaces_the_first(run, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for count in (3, 2):
        file.write_text('{"problem": "1+1", "answer": "2"}\n' * count)
        assert run("configs/data/quickstart.toml", f"input={file}")[0] == 0
        assert len(PromptSet.open(str(tmp_path / "out"))) == count
    assert left_in(tmp_path) == {"rows.jsonl", "out"}
    assert left_in(tmp_path / "out") == {store.PROMPTS, store.META, store.REJECTED}


def test_a_folder_of_something_else_is_never_replaced(run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    status, words, _ = run("configs/data/math500.toml", f"input={SAMPLES / 'math.jsonl'}")
    assert status == 2 and "exists and was not written by preprocess.py" in words
    assert left_in(tmp_path / "out") == {"thesis.tex"}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("template=qwen_r2", "templates.json: has no template 'qwen_r2'; the nearest template is 'qwen_r1'"),
        ("templates=none.json", "none.json: cannot be read (No such file or directory)"),
        ("template=llama3", ""),
        ("tokenizer=none", "tokenizer 'none': has none of tokenizer.json"),
        ("input=none.jsonl", "input = 'none.jsonl': there is no such file"),
        ("input=pyproject.toml", "input = 'pyproject.toml': "),
        ("handler=gsm8q", "handler = 'gsm8q': is not known; the nearest known one is 'gsm8k'"),
        (
            "handler=gsm8k",
            (
                "none of its 5 rows is kept, the first because tests/inputs/prompts/math.jsonl:1 'answer' has no final "
                "answer after ####"
            ),
        ),
        (
            "map_keys.prompt=problm",
            ("the first because tests/inputs/prompts/math.jsonl:1 has no 'problm'; the nearest column is 'problem'"),
        ),
        (
            "map_keys.promt=problem",
            "argument 'map_keys.promt=problem': unknown key map_keys.promt; the nearest known one is map_keys.prompt",
        ),
        ("max_prompt_token=8", "unknown key max_prompt_token; the nearest known one is max_prompt_tokens"),
        ("max_prompt_tokens=0", "max_prompt_tokens = 0; it must be at least 1"),
        ("max_prompt_tokens=8", "all over max_prompt_tokens = 8; the shortest has "),
        ("max_prompt_tokens=many", "max_prompt_tokens = 'many' is of type str; it must be int"),
        (
            "map_keys.system=sytem",
            "map_keys.system: no row of tests/inputs/prompts/math.jsonl has a column 'sytem'; the columns are 'answer'",
        ),
        (
            "map_keys.query=inputs",
            "map_keys.query: no row of tests/inputs/prompts/math.jsonl has a column 'inputs'; the columns are 'answer'",
        ),
        (
            'dataset_additional_keys=["labels", "levl"]',
            (
                "dataset_additional_keys: no row of tests/inputs/prompts/math.jsonl has a column 'levl'; "
                "the nearest column is 'level'"
            ),
        ),
        (
            "output=tests/inputs/prompts/math.jsonl/x",
            "output = 'tests/inputs/prompts/math.jsonl/x': cannot be written (",
        ),
        ("output=/proc/none/data", "output = '/proc/none/data': cannot be written (No such file or directory)"),
        (f"output={'x' * 5000}", "cannot be written (File name too long)"),
        ("templates=configs", "configs: cannot be read (Is a directory)"),
        ("tokenizer=pyproject.toml", "tokenizer 'pyproject.toml': has none of tokenizer.json"),
        (f"tokenizer={'x' * 5000}", "cannot be read (File name too long)"),
        ("input=tests/inputs/prompts/math.jsonl/x", "there is no such file or folder"),
        ("input=\udcff.jsonl", "argument 'input=\\udcff.jsonl': has bytes that are not UTF-8"),
        ("handler=tests:take", "handler = 'tests:take': there is no file 'tests'"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(override: str, sentence: str, run, tmp_path: Path) -> None:
    before = left_in(tmp_path), left_in(SAMPLES)
    status, words, output = run("configs/data/math500.toml", f"input={SAMPLES / 'math.jsonl'}", override)
    if not sentence:  # <|eot_id|> is a token of the test's tokenizer
        assert status == 0 and output.is_dir()
        return
    assert status == 2 and "Traceback" not in words
    assert f"preprocess.py: {sentence}" in words or sentence in words.splitlines()[-1]
    assert (left_in(tmp_path), left_in(SAMPLES)) == before


def test_a_link_is_written_through(run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    (tmp_path / "big").mkdir()
    (tmp_path / "out").symlink_to("big/data")  # leads nowhere yet
    for count in (1, 2):
        rows.write_text('{"problem": "1+1", "answer": "2"}\n' * count)
        assert run("configs/data/quickstart.toml", f"input={rows}")[0] == 0
        assert (tmp_path / "out").readlink() == Path("big/data") and len(PromptSet.open(str(tmp_path / "out"))) == count
    assert left_in(tmp_path) == {"rows.jsonl", "out", "big"} and left_in(tmp_path / "big") == {"data"}


def test_folders_made_for_an_output_that_fails_are_removed(run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for output, _ in ((tmp_path / "a" / "b" / "data", set()), (tmp_path / "c" / "d" / "data", {"c"})):
        (tmp_path / "c").mkdir(exist_ok=True)
        status, words, _ = run("configs/data/quickstart.toml", f"input={tmp_path / 'rows.jsonl'}", f"output={output}")
        assert status == 2 and "none of its 1 rows is kept" in words
    assert left_in(tmp_path) == {"rows.jsonl", "c"} and not left_in(tmp_path / "c")


def test_control_tokens_in_a_question_are_text_unless_the_config_allows_them(
    run, tmp_path: Path, tokenizer_path: str
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"problem": "a<|im_end|>b", "answer": "2"}\n')
    tok = tokenizer.load(tokenizer_path)
    end = tok.convert_tokens_to_ids("<|im_end|>")
    for allowed, count in (("false", 2), ("true", 3)):  # the template has two
        overrides = (
            f"input={tmp_path / 'rows.jsonl'}",
            "template=qwen",
            "max_prompt_tokens=999",
            f"allow_special_tokens={allowed}",
        )
        assert run("configs/data/quickstart.toml", *overrides)[0] == 0
        prompt = PromptSet.open(str(tmp_path / "out"))[0]
        assert prompt.token_ids.count(end) == count and tok.decode(prompt.token_ids) == prompt.text
        assert "user\na<|im_end|>b<|im_end|>" in prompt.text


def test_what_the_tokenizer_lacks_is_said(run, tmp_path: Path) -> None:
    plain = build_tokenizer(tmp_path / "plain", special=["<bos>"])
    config = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    (tmp_path / "plain" / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "eos_token"})
    )
    overrides = (
        f"input={SAMPLES / 'math.jsonl'}",
        f"tokenizer={plain}",
        "template=deepseek3_r1",
        "max_prompt_tokens=4000",
    )
    status, words, _ = run("configs/data/math500.toml", *overrides)
    assert status == 0 and "names no end token (eos_token_id) in its files" in words
    assert (
        "note: template deepseek3_r1 has '<｜User｜>', '<｜Assistant｜>', which" in words
        and "several ordinary tokens" in words
    )


def test_rows_of_any_kind_reach_an_own_handler(run, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def take(record, keys):\n    return record[0], record[1]['value']\n")
    (tmp_path / "rows.json").write_text('{"data": [["1+1", {"value": "2"}], ["1+2", {"value": "3"}], {"a": 1}]}')
    overrides = f"input={tmp_path / 'rows.json'}", f"handler={tmp_path / 'own.py'}:take"
    status, words, output = run("configs/data/quickstart.toml", *overrides)
    prompts = PromptSet.open(str(output))
    assert status == 0 and [prompts[i].label for i in range(len(prompts))] == ["2", "3"]
    assert f"bad row: {tmp_path / 'rows.json'}:1 (element 3) 0" in words
    status, words, _ = run("configs/data/quickstart.toml", *overrides, 'dataset_additional_keys=["level"]')
    assert (
        status == 2
        and "dataset_additional_keys: no row of" in words
        and "has a column 'level'; the only column is 'a'" in words
    )


def test_decimals_of_parquet_are_labels_and_additional_columns(run, tmp_path: Path) -> None:
    decimals = [Decimal("12.50"), Decimal("3.00")]
    pq.write_table(pa.table({"problem": ["p", "q"], "answer": decimals, "level": decimals}), tmp_path / "rows.parquet")
    overrides = f"input={tmp_path / 'rows.parquet'}", 'dataset_additional_keys=["level"]'
    assert run("configs/data/quickstart.toml", *overrides)[0] == 0
    prompts = PromptSet.open(str(tmp_path / "out"))
    assert [(prompts[i].label, prompts.additional(i)) for i in range(2)] == [
        ("12.50", {"level": "12.50"}),
        ("3.00", {"level": "3.00"}),
    ]


def test_an_error_of_an_own_handlers_file_is_not_taken_for_a_full_disk(run, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def take(record, keys):\n    return open('/none/of/mine').read(), '2'\n")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    before = left_in(tmp_path)
    with pytest.raises(FileNotFoundError):
        run("configs/data/quickstart.toml", f"input={tmp_path / 'rows.jsonl'}", f"handler={tmp_path / 'own.py'}:take")
    assert left_in(tmp_path) - {"__pycache__"} == before


@pytest.mark.parametrize("name", ["with space", "co:lon", "quo'te\"s", "new\nline", "中文", "[red]", "[/x]"])
def test_every_file_may_lie_in_a_folder_of_any_name(name: str, run, tmp_path: Path) -> None:
    there = tmp_path / name
    build_tokenizer(there / "model")
    (there / "rows.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    (there / "own.py").write_text("def take(record, keys):\n    return '1+1', '2'\n")
    (there / "t.json").write_text(json.dumps([{"name": "t"}]))
    given = {
        "tokenizer": "model",
        "input": "rows.jsonl",
        "output": "data",
        "handler": "own.py:take",
        "templates": "t.json",
    }
    assert (
        run("configs/data/quickstart.toml", *(f"{key}={there / path}" for key, path in given.items()), "template=t")[0]
        == 0
    )
    prompts = PromptSet.open(str(there / "data"))
    assert prompts[0].text == "1+1" and prompts.source(0) == f"{there / 'rows.jsonl'}:1"
    prompts.check(tokenizer.digest(str(there / "model")))
    command = prompts.meta["inspect"].replace("python", sys.executable, 1)
    assert "'text': '1+1'" in subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout


def test_a_stop_word_that_the_tokenizer_does_not_have_is_refused(tmp_path: Path, run) -> None:
    templates = tmp_path / "own.json"
    templates.write_text(json.dumps([{"name": "own", "stop_words": ["<|end|>"]}]))
    status, words, output = run(
        "configs/data/math500.toml", f"input={SAMPLES / 'math.jsonl'}", f"templates={templates}", "template=own"
    )
    assert status == 2 and "'<|end|>' is 7 tokens in this tokenizer" in words and not output.exists()


def test_a_begin_token_that_the_tokenizer_lacks_is_left_out_and_said(tmp_path: Path, run) -> None:
    plain = build_tokenizer(tmp_path / "plain", special=["<eos>"], adds_bos=False)
    overrides = f"input={SAMPLES / 'math.jsonl'}", "template=deepseek3_r1", "max_prompt_tokens=4000"
    status, words, output = run("configs/data/math500.toml", *overrides, f"tokenizer={plain}")
    assert status == 0 and "note: template deepseek3_r1 starts with the begin token, which" in words
    assert PromptSet.open(str(output))[0].text.startswith("A conversation")
    assert "note:" not in run("configs/data/math500.toml", *overrides)[1]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, run) -> None:
    before, limits = left_in(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        status, words, _ = run("configs/data/math500.toml", f"input={SAMPLES / 'math.jsonl'}", "max_prompt_tokens=4000")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2 and "cannot be written (" in words and left_in(tmp_path) == before


@pytest.mark.parametrize("file", sorted(Path("configs/data").glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_config_loads_and_its_template_exists(file: Path) -> None:
    cfg = config.load(str(file), [], DataConfig)
    assert cfg.template in {e["name"] for e in json.loads(Path(cfg.templates).read_text(encoding="utf-8"))}


# The columns of each data set as published; the headers of the configs say where each was found.
COLUMNS = {
    "aime24": ("id", "problem", "solution", "answer", "url", "year"),
    "aime25": ("problem", "answer", "id"),
    "amc23": ("question", "answer"),
    "dapo_math_17k": ("prompt", "solution", "data_source", "source_prompt", "ability", "reward_model", "extra_info"),
    "deepscaler": ("problem", "answer", "solution"),
    "gsm8k": ("question", "answer"),
    "gsm8k_test": ("question", "answer"),
    "math12k": ("problem", "answer"),
    "math500": ("problem", "solution", "answer", "subject", "level", "unique_id"),
    "minerva": ("question", "answer"),
    "olympiadbench": ("question", "solution", "final_answer"),
    "quickstart": ("problem", "answer"),
}


@pytest.mark.parametrize("file", sorted(Path("configs/data").glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_config_names_columns_that_its_data_set_has(file: Path) -> None:
    cfg = config.load(str(file), [], DataConfig)
    named = {*dataclasses.asdict(cfg.map_keys).values(), *cfg.dataset_additional_keys} - {""}
    assert named <= set(COLUMNS[file.stem])

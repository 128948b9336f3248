"""The TOML tree: round trip, overrides, and one clear sentence for each kind of mistake."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero import config
from r1zero.config import Config, UserError, limits


def write(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return str(path)


def test_the_resolved_config_reads_back_equal(tmp_path):
    cfg = Config(layout=config.Layout(reference=config.MegatronGrid(ranks="0-1", pipeline_layers=(1, 2))))
    assert config.load(write(tmp_path, config.dump(cfg)), [], Config) == cfg


def test_an_override_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    path = write(tmp_path, "[grpo]\nkl_coef = 0.5\ngroup_size = 4\n")
    cfg = config.load(
        path, ["grpo.kl_coef=0.0", "run.name=trial", "layout.train.ranks=0-1", "layout.rollout.ranks=3"], Config
    )
    assert (cfg.grpo.kl_coef, cfg.grpo.group_size, cfg.run.name, cfg.layout.train.ranks, cfg.layout.rollout.ranks) == (
        0.0,
        4,
        "trial",
        "0-1",
        "3",
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("[grpo]\nkl_coeff = 1.0", ["grpo.kl_coeff", "grpo.kl_coef"]),
        ("[grppo]\nkl_coef = 1.0", ["grppo", "grpo"]),
        ("[grpo]\ngroup_size = 1.5", ["grpo.group_size", "1.5", "int"]),
        ("[grpo]\ngroup_size = true", ["grpo.group_size", "True", "int"]),
        ("[run]\ndevice = 'tpu'", ["run.device", "tpu", "cpu"]),
        ("grpo = 3", ["grpo", "section"]),
        ("[layout.train]\npipeline_layers = [1, 'a']", ["layout.train.pipeline_layers[1]", "'a'"]),
        ("[reward]\nrules = { base_acc = 'x' }", ["reward.rules.base_acc", "'x'"]),
        ("[grpo\nx", ["c.toml", "line 1"]),
    ],
)
def test_a_mistake_is_named_with_field_and_value(tmp_path, text, words):
    with pytest.raises(UserError) as error:
        config.load(write(tmp_path, text), [], Config)
    assert all(w in str(error.value) for w in words), error.value


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("grpo.kl_cof=0", "unknown key grpo.kl_cof; the nearest known one is grpo.kl_coef"),
        (
            "grpo.clip_ratio=0.2",
            "grpo.clip_ratio no longer exists; set grpo.clip_low and grpo.clip_high to its value instead",
        ),
        ("gro.kl_coef=0", "unknown key gro; the nearest known one is grpo"),
        ("plan.zzzzzz=0", "unknown key plan.zzzzzz; the only known one is plan.assume"),
        ("sync.zz=0", "unknown key sync.zz; the known ones are sync.staging_mib, sync.verify_every"),
        (
            "evaluation.sets.{.pth=0",
            "unknown key evaluation.sets.{.pth; the nearest known one is evaluation.sets.{.path",
        ),
        ("layout.trian.ranks=0", "unknown key layout.trian; the nearest known one is layout.train"),
        ("grpo.kl_coef=1" + "0" * 400, "grpo.kl_coef = 1" + "0" * 400 + " is too large; it must be less than 1e308"),
        ("grpo.kl_coef=0x" + "f" * 5000, "grpo.kl_coef = a number too long to show is too large; it must be less th"),
        ("grpo.kl_coef=x", "grpo.kl_coef = 'x' is of type str; it must be float"),
        ("grpo=3", "grpo = 3 is a value; it must be a section"),
        ("grpo={kl_cof=1}", "unknown key grpo.kl_cof; the nearest known one is grpo.kl_coef"),
        ("run.device=tpu", "run.device = 'tpu'; it must be one of 'cpu', 'cuda', 'npu'"),
        ("reward.rules={acc='x'}", "reward.rules.acc = 'x' is of type str; it must be float"),
        (
            "layout.train.pipeline_layers=[1, 'a']",
            "layout.train.pipeline_layers[1] = 'a' is of type str; it must be int",
        ),
        ("grpo.group_size=0x" + "f" * 5000, "grpo.group_size = a number too long to show"),
        (
            "run.name=\udcff",
            "has bytes that are not UTF-8, which no TOML or JSON file can record; rename the file or folder",
        ),
        ('model.path="a\\u0000"', "model.path = 'a\\x00' has a null character, which no path has"),
    ],
)
def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(tmp_path, override, sentence):
    with pytest.raises(UserError) as error:
        limits.check(config.load(write(tmp_path, "[grpo]\nkl_coef = 0.1"), [override], Config))
    if "too long" not in sentence:
        assert str(error.value) == f"argument {override!r}: {sentence}"


def test_a_mistake_of_the_file_beside_an_argument_is_the_files(tmp_path):
    with pytest.raises(UserError) as error:
        config.load(write(tmp_path, "[grpo]\nkl_cof = 0.1"), ["grpo.kl_coef=1"], Config)
    assert str(error.value).startswith(f"{tmp_path}/c.toml: unknown key grpo.kl_cof")


PATHS = "[run]\ndir = 'd'\n[model]\npath = 'm'\ncheckpoint = '/c'\n[reward]\nrules = { acc = 1.0, 'own.py:rule' = 1 }\n"


@pytest.mark.parametrize(
    "folder, start",
    [
        ("configs", ""),
        ("configs/data", ""),
        ("configs/model", ""),
        ("configs/recipes", ""),
        ("", None),
        ("configs/old", None),
        ("my_configs", None),
        ("configs/data/configs", "configs/data"),
    ],
)
@pytest.mark.parametrize("as_text", ["absolute", "relative"])
def test_relative_paths_of_a_file_in_configs_start_above_it_and_others_at_the_working_directory(
    tmp_path, folder, start, as_text, monkeypatch
):
    there = tmp_path / "checkout"
    (there / folder).mkdir(parents=True)
    (tmp_path / "cwd").mkdir()
    file = there / folder / "c.toml"
    file.write_text(PATHS)
    monkeypatch.chdir(tmp_path / "cwd")
    path = str(file) if as_text == "absolute" else os.path.relpath(file)
    cfg = config.load(path, ["data.path=a"], Config)
    base = "" if start is None else f"{there / start}/"
    assert (cfg.run.dir, cfg.model.path, cfg.model.checkpoint, cfg.model.shape, cfg.data.path) == (
        f"{base}d",
        f"{base}m",
        "/c",
        "",
        "a",
    )
    assert cfg.reward.rules == {"acc": 1.0, f"{base}own.py:rule": 1.0}
    monkeypatch.chdir(there)
    as_written = start in ("", None)
    assert (config.load(str(file), [], Config).model.path == "m") == as_written, (
        "in the checkout a path is what the file says"
    )


def test_a_default_path_starts_where_those_of_the_file_do(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir("/")
    assert config.load(write(tmp_path / "configs", ""), [], Config).run.dir == f"{tmp_path}/runs"
    assert config.load(write(tmp_path, ""), [], Config).run.dir == "runs"


def test_the_same_config_from_another_directory_names_the_same_files(monkeypatch):
    here = Path.cwd()
    names = [*sorted(here.glob("configs/*.toml")), *sorted(here.glob("configs/recipes/*.toml"))]
    plain = [config.plain(config.load(str(name), [], Config)) for name in names]
    monkeypatch.chdir("/")
    for name, tree in zip(names, plain, strict=True):
        again = config.plain(config.load(str(name), [], Config))
        for section, key in (
            ("run", "dir"),
            ("model", "path"),
            ("model", "shape"),
            ("model", "checkpoint"),
            ("data", "path"),
        ):
            written = tree[section].pop(key)
            assert again[section].pop(key) == (str(here / written) if written else ""), (name, key)
        for one, written in zip(again["evaluation"]["sets"].values(), tree["evaluation"]["sets"].values(), strict=True):
            assert one.pop("path") == str(here / written.pop("path"))
        assert again == tree


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[grpo]\nkl_coef = 0.5", encoding="utf-8-sig")
    assert config.load(str(path), [], Config).grpo.kl_coef == 0.5


@pytest.mark.parametrize(
    "path, sentence",
    [
        ("", "cannot be read (Is a directory); name an existing TOML file"),
        ("c.toml/x", "cannot be read (Not a directory)"),
        ("n" * 5000, "cannot be read (File name too long)"),
        ("latin.toml", ":2: is not UTF-8 (byte 0xe9); save the file as UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path, path, sentence):
    write(tmp_path, "")
    (tmp_path / "latin.toml").write_bytes(b"[run]\nname = '\xe9'")
    with pytest.raises(UserError) as error:
        config.load(str(tmp_path / path), [], Config)
    assert str(error.value).startswith(str(tmp_path)) and sentence in str(error.value)


def test_a_checkout_in_a_folder_that_is_not_utf_8_is_a_sentence(tmp_path):
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/\xff/configs"))
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="has bytes that are not UTF-8"):
        config.load(write(folder, ""), [], Config)


@pytest.mark.parametrize("override", ["grpo.kl_coef", "=1", "grpo.kl_coef.x=1", "nothing.at=1"])
def test_a_malformed_override_is_refused(tmp_path, override):
    with pytest.raises(UserError):
        config.load(write(tmp_path, "[grpo]\nkl_coef = 0.1"), [override], Config)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match="none.toml"):
        config.load("none.toml", [], Config)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80) | st.text(alphabet="[]=.\"'{}#\n aklrun_019-", max_size=60).map(str.encode))
def test_any_bytes_give_a_config_or_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "c.toml"
    path.write_bytes(data)
    try:
        config.load(str(path), [], Config)
    except UserError as error:
        assert str(error)

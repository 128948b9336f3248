"""The TOML tree: round trip, overrides, and one clear sentence for each kind of mistake."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero import config
from r1zero.config import Config, UserError


def write(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return str(path)


def test_the_resolved_config_reads_back_equal(tmp_path):
    cfg = Config(layout=config.Layout(reference=config.MegatronGrid(ranks="0-1", pipeline_layers=(1, 2))))
    assert config.load(write(tmp_path, config.dump(cfg)), [], Config) == cfg


def test_an_override_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    path = write(tmp_path, "[grpo]\nkl_coef = 0.5\ngroup_size = 4\n")
    cfg = config.load(path, ["grpo.kl_coef=0.0", "run.name=trial", "layout.train.ranks=0-1", "layout.rollout.ranks=3"], Config)
    assert (cfg.grpo.kl_coef, cfg.grpo.group_size, cfg.run.name, cfg.layout.train.ranks,
            cfg.layout.rollout.ranks) == (0.0, 4, "trial", "0-1", "3")


@pytest.mark.parametrize("text, words", [
    ("[grpo]\nkl_coeff = 1.0", ["grpo.kl_coeff", "grpo.kl_coef"]),
    ("[grppo]\nkl_coef = 1.0", ["grppo", "grpo"]),
    ("[grpo]\ngroup_size = 1.5", ["grpo.group_size", "1.5", "int"]),
    ("[grpo]\ngroup_size = true", ["grpo.group_size", "True", "int"]),
    ("[run]\ndevice = 'tpu'", ["run.device", "tpu", "cpu"]),
    ("grpo = 3", ["grpo", "section"]),
    ("[layout.train]\npipeline_layers = [1, 'a']", ["layout.train.pipeline_layers[1]", "'a'"]),
    ("[reward]\nrules = { base_acc = 'x' }", ["reward.rules.base_acc", "'x'"]),
    ("[grpo\nx", ["c.toml", "line 1"]),
])
def test_a_mistake_is_named_with_field_and_value(tmp_path, text, words):
    with pytest.raises(UserError) as error:
        config.load(write(tmp_path, text), [], Config)
    assert all(w in str(error.value) for w in words), error.value


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

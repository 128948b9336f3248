"""`[model] overrides`: trainer, engine, plan and export see the same values, and no others can be set.

python -m pytest tests/model/test_overrides.py
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from r1zero import config
from r1zero.checkpoint import hf_export
from r1zero.config import UserError
from r1zero.model import families, overrides
from r1zero.model.weights import weights
from tests import jobs
from tests.oracles import published

ROPE = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def folder_of(family: str, folder: Path, **changes: object) -> Path:
    values = json.loads(json.dumps(published.PUBLISHED[family])) | changes
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    "family, given, field, value",
    [
        ("Qwen2.5-0.5B", {"rope_theta": 5e6}, "rope_theta", 5e6),
        ("Qwen2.5-0.5B", {"rms_norm_eps": 1e-5, "max_position_embeddings": 99}, "max_positions", 99),
        ("DeepSeek-V3", {"rope_scaling": {"factor": 20.0}}, "yarn.factor", 20.0),
        ("DeepSeek-V3", {"routed_scaling_factor": 1.5}, "moe.routed_scaling_factor", 1.5),
        ("DeepSeek-V3", {"num_experts_per_tok": 4, "topk_group": 2}, "moe.topk", 4),
    ],
)
def test_the_shape_has_the_values_and_is_otherwise_the_same(tmp_path, family, given, field, value):
    folder = folder_of(family, tmp_path)
    plain = families.model_shape(config.Model(path=str(folder)))
    shape = families.model_shape(config.Model(path=str(folder), overrides=given))

    def read(one):
        for name in field.split("."):
            one = getattr(one, name)
        return one

    assert read(shape) == value != read(plain) and weights(shape) == weights(plain)
    assert families.model_shape(config.Model(path=str(folder), overrides={})) == plain


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"hidden_size": 64}, "model.overrides.hidden_size = 64: this field must be as in the config.json of "),
        ({"num_attention_heads": 7}, "model.overrides.num_attention_heads = 7: this field must be as in"),
        ({"tie_word_embeddings": False}, "only max_position_embeddings, rms_norm_eps, rope_parameters, rope_scaling, "),
        ({"torch_dtype": "float32"}, 'model.overrides.torch_dtype = "float32": this field must be as in'),
        ({"rope_thta": 1.0}, "Qwen2ForCausalLM has no such field; the nearest field that can be over"),
        ({"n_group": 2}, "model.overrides.n_group: Qwen2ForCausalLM has no such field; the "),
        ({"rope_theta": -1}, "config.json: rope_theta = -1; it must be a number greater than 0"),
        ({"rms_norm_eps": 1}, "model.overrides and "),
        ({"rope_scaling": ROPE}, 'config.json: rope_scaling.rope_type = "llama3"; for this family only'),
        ({"rope_scaling": 3}, "rope_scaling = 3; it must be an object, or null"),
    ],
)
def test_what_contradicts_the_weights_or_is_unknown_is_one_sentence(tmp_path, given, sentence):
    model = config.Model(path=str(folder_of("Qwen2.5-0.5B", tmp_path)), overrides=given)
    with pytest.raises(UserError) as error:
        families.model_shape(model)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError):
        families.read_shape(model.path, model.overrides)


def test_keys_are_set_from_a_file_and_from_the_command_line(tmp_path):
    (tmp_path / "job.toml").write_text("[model.overrides]\nrope_theta = 5e6\n")
    arguments = ["model.overrides.rms_norm_eps=1e-5", "model.overrides.rope_scaling.factor=2.0"]
    loaded = config.load(str(tmp_path / "job.toml"), arguments, config.Config).model
    assert loaded.overrides == {"rope_theta": 5e6, "rms_norm_eps": 1e-5, "rope_scaling": {"factor": 2.0}}
    assert type(loaded.overrides["rope_scaling"]["factor"]) is float
    again = tmp_path / "again.toml"
    again.write_text(config.dump(config.Config(model=loaded)))
    assert config.load(str(again), [], config.Config).model == loaded


def test_an_export_states_the_values_with_which_the_model_was_trained(tmp_path):
    source, out = folder_of("DeepSeek-V3", tmp_path), tmp_path / "out"
    out.mkdir()
    before = (source / "config.json").read_bytes()
    hf_export.finish(out, {}, config.Model(path=str(source), overrides={"rope_scaling": {"factor": 20.0}}))
    exported = json.loads((out / "config.json").read_text())
    assert exported["rope_scaling"]["factor"] == 20.0 and exported["rope_scaling"]["type"] == "yarn"
    assert "quantization_config" not in exported and (source / "config.json").read_bytes() == before


def steps(rank, cfg):
    def use(trainer):
        trainer.sync_and_check(0)  # the parity gate
        return [trainer.step(i) for i in (1, 2)]

    return jobs.with_trainer(rank, cfg, use)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, given",
    [
        ("qwen2", {"rope_parameters": {"rope_theta": 40.0}, "rms_norm_eps": 0.01}),
        ("deepseek_v3", {"routed_scaling_factor": 0.5, "rope_parameters": {"rope_theta": 40.0}}),
    ],
)
def test_trainer_and_engine_compute_with_the_same_values(ranks, tmp_path, family, given):
    base = jobs.make_base(tmp_path, family)
    cfg = jobs.job_config(base, config.Layout())
    changed = replace(cfg, model=replace(cfg.model, overrides=given))
    (plain,) = ranks.run(steps, cfg, size=1)
    (values,) = ranks.run(steps, changed, size=1)
    assert max(one["rollout_gap/max"] for one in [*plain, *values]) < 1e-5
    assert abs(values[0]["actor/entropy"] - plain[0]["actor/entropy"]) > 1e-4
    assert overrides.stated_config(changed.model) != overrides.stated_config(cfg.model)

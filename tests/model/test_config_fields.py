"""Every field of config.json is read as Hugging Face reads it, known to change no logit, or refused by name.

python -m pytest tests/model/test_config_fields.py
"""

import dataclasses
import json

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1zero.config import UserError
from r1zero.model.config_fields import REQUIRED
from r1zero.model.families import FAMILIES, read_shape
from tests import fast
from tests.fuzz.strategies import damaged, replaced
from tests.model import cases
from tests.model.cases import grid
from tests.model.config_values import (
    DEEPSEEK,
    DEEPSEEK_V2,
    HARMLESS_OF,
    LLAMA,
    MINIMAL,
    QWEN2,
    READ,
    REFUSED,
    SAME_SHAPE,
    TOGETHER,
    YARN,
)
from tests.oracles.published import PUBLISHED
from tests.oracles.transformers_model import LENGTHS, LLAMA3, Oracle

CLASSES = {name: getattr(transformers, name.replace("ForCausalLM", "Config")) for name in FAMILIES}
ODD = [
    None,
    True,
    False,
    "128",
    "",
    [],
    {},
    -1,
    0,
    1,
    3,
    0.5,
    1.0,
    64.0,
    float("nan"),
    float("inf"),
    2**40,
    10**400,
    [1],
    ["x"],
    {"a": 1},
]
TOLERANCE = 1e-5
"""Of the largest logit, as in test_parity."""


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def shape_of(folder, config):
    return read_shape(write(folder, config))


def saved(folder, config):
    """A model of random weights with exactly this config.json."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(write(folder, config)), dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1) if parameter.dim() > 1 else parameter.normal_(mean=1.0, std=0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.1, 0.1)
    model.save_pretrained(folder)
    return write(folder, config)


@torch.no_grad()
def logits_of_transformers(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return torch.cat([model(piece[None], return_dict=True).logits[0] for piece in Oracle(folder).tokens.split(LENGTHS)])


def difference(rank, folder, config):
    """Between megatron-core's and Hugging Face's logits, of the largest."""
    oracle = Oracle(saved(folder, config))
    built = cases.build_on(oracle, grid(), trainable=False)
    with torch.no_grad():
        found = torch.cat(cases.schedule(built, list(oracle.tokens.split(LENGTHS)), 1, forward_only=True))
    expected = logits_of_transformers(folder)
    return float((found - expected).abs().max() / expected.abs().max())


def differences(rank, folder, configs):
    found = []
    for i, config in enumerate(configs):
        (folder / str(i)).mkdir()
        found.append(difference(rank, folder / str(i), config))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_has_every_field_that_hugging_face_writes_or_takes(family):
    config = CLASSES[family]()
    names = {field.name for field in dataclasses.fields(config)} | config.to_dict().keys() | config.attribute_map.keys()
    names |= transformers.GenerationConfig._get_default_generation_params().keys() | {
        "model_type",
        "rope_scaling",
        "rope_theta",
        "torch_dtype",
    }
    assert names - FAMILIES[family].fields.keys() == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_is_tried_below_with_the_treatment_that_the_table_says(family):
    table, harmless, read, refused = FAMILIES[family].fields, HARMLESS_OF[family], READ[family], REFUSED[family]
    assert {name for name, field in table.items() if not field.effect} == harmless.keys()
    assert {name for name, field in table.items() if field.effect and field.only is None} == read.keys()
    assert {name for name, field in table.items() if field.only is not None} <= refused.keys()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_are_read_give_hugging_faces_logits(ranks, tmp_path, family):
    base = shape_of(tmp_path, MINIMAL[family])
    alone = [{name: value} for name, some in READ[family].items() for value in some if name != "quantization_config"]
    for change in alone:
        ((name, value),) = change.items()
        changes = shape_of(tmp_path, MINIMAL[family] | change) != base
        assert changes or value is None or name in SAME_SHAPE, f"{name} is not read"
    together = TOGETHER.get(family, [])
    assert all(shape_of(tmp_path, MINIMAL[family] | change) != base for change in together)
    (found,) = ranks.run(differences, tmp_path, [MINIMAL[family] | change for change in alone + together], size=1)
    assert {
        str(change): worst for change, worst in zip(alone + together, found, strict=True) if not worst <= TOLERANCE
    } == {}


@pytest.mark.parametrize(
    "family, more",
    [
        *((family, {}) for family in FAMILIES),
        *((family, dict(rope_scaling={"type": "yarn", "factor": 4.0})) for family in (DEEPSEEK, DEEPSEEK_V2)),
    ],
)
def test_what_a_file_does_not_state_is_what_hugging_face_takes(ranks, tmp_path, family, more):
    config = MINIMAL[family] | more
    for name, field in FAMILIES[family].fields.items():
        if field.default is REQUIRED:
            with pytest.raises(UserError, match=f"config.json: {name} "):
                shape_of(tmp_path, {key: value for key, value in config.items() if key != name})
    assert ranks.run(difference, tmp_path, config, size=1)[0] <= TOLERANCE


@pytest.mark.parametrize("family", fast.only([QWEN2], FAMILIES))
def test_fields_without_effect_change_no_logit_of_hugging_face(tmp_path, family):
    """All of them at once. Bit for bit, but for experts_implementation, which adds up the experts in another order."""
    folder = saved(tmp_path, MINIMAL[family])
    plain, shape = logits_of_transformers(folder), read_shape(folder)
    for pick in (0, -1):
        config = MINIMAL[family] | {name: values[pick] for name, values in HARMLESS_OF[family].items()}
        assert shape_of(folder, config) == shape
        assert (logits_of_transformers(folder) - plain).abs().max() <= 1e-6 * plain.abs().max()


@pytest.mark.parametrize(
    "family, name, value",
    [(family, name, value) for family in FAMILIES for name, values in REFUSED[family].items() for value in values],
)
def test_a_field_that_trainer_or_engine_would_read_otherwise_is_refused_by_name(tmp_path, family, name, value):
    with pytest.raises(UserError) as caught:
        shape_of(tmp_path, {**MINIMAL[family], name: value})
    said = str(caught.value)
    assert "\n" not in said and str(tmp_path / "config.json") in said and name in said


@pytest.mark.parametrize("name", ["n_group", "topk_group"])
def test_null_for_the_groups_of_experts_is_refused_with_the_cure(tmp_path, name):
    """The cure is one of TOGETHER, whose logits are compared above. Hugging Face computes nothing with null."""
    null, cure = (MINIMAL[DEEPSEEK] | dict.fromkeys(("n_group", "topk_group"), value) for value in (None, 1))
    cured = shape_of(tmp_path, cure).require_moe()
    assert (cured.groups, cured.topk_groups) == (1, 1)
    with pytest.raises(UserError, match=f"{name} = null; .* has n_group = 1 and topk_group = 1"):
        shape_of(tmp_path, cure | {name: None})
    folder = saved(tmp_path, MINIMAL[DEEPSEEK])
    (folder / "config.json").write_text(json.dumps(null))
    with pytest.raises(TypeError):
        logits_of_transformers(folder)


def sections(family):
    """Top-level fields, and those of rotary positions and FP8, each with a config that has it at the value."""
    base = MINIMAL[family]
    yield from ((name, lambda value, name=name: {**base, name: value}) for name in FAMILIES[family].fields)
    rope = {DEEPSEEK: YARN, DEEPSEEK_V2: YARN, LLAMA: LLAMA3}.get(family, {"rope_type": "default"})
    for name in (
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "attention_factor",
        "truncate",
        "low_freq_factor",
        "high_freq_factor",
    ):
        yield name, lambda value, name=name: {**base, "rope_scaling": {**rope, name: value}}
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    for name in ("quant_method", "fmt", "weight_block_size", "activation_scheme", "modules_to_not_convert"):
        yield name, lambda value, name=name: {**base, "quantization_config": {**fp8, name: value}}


@pytest.mark.parametrize("family", fast.only([LLAMA, DEEPSEEK], FAMILIES))
def test_a_value_of_any_type_is_refused_by_name_or_taken_by_hugging_face_too(tmp_path, family):
    taken = 0
    for name, config in sections(family):
        for value in ODD:
            try:
                shape_of(tmp_path, config(value))
            except UserError as error:
                assert "\n" not in str(error) and str(tmp_path / "config.json") in str(error), (name, value, error)
                continue
            taken += 1
            transformers.AutoConfig.from_pretrained(tmp_path)
    assert taken > 100


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read_whole(tmp_path, name):
    config = PUBLISHED[name]
    shape = shape_of(tmp_path, config)
    assert (shape.layers, shape.heads, shape.rms_norm_eps) == (
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["rms_norm_eps"],
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(hidden_size="128"), 'hidden_size = "128"; it must be a whole number of at least 1'),
        (dict(rope_scaling=[]), "rope_scaling = []; it must be an object, or null"),
        (dict(rms_norm_eps=None), "rms_norm_eps = null; it must be a number greater than 0"),
        (dict(vocab_size=True), "vocab_size = true; it must be a whole number"),
        (dict(new_field={"a": [1, 2]}), 'new_field = {"a": [1, 2]}; this field is not known for Qwen2ForCausalLM'),
        (
            dict(rope_scaling={"rope_type": "default", "mrope_section": [1]}),
            "rope_scaling.mrope_section = [1]; this field is not known for the rope_type",
        ),
        (
            dict(rope_scaling={"type": "default", "rope_theta": 5.0}, rope_parameters={"rope_theta": 6.0}),
            "rope_scaling and rope_parameters contradict",
        ),
        (
            dict(rope_scaling={"type": "default", "rope_theta": 5.0}, rope_theta=6.0),
            "rope_scaling.rope_theta = 5.0; rope_theta beside rope_scaling is 6.0",
        ),
        (
            dict(quantization_config={"bits": 4, "quant_method": "gptq"}),
            'quantization_config.quant_method = "gptq"; only "fp8" is supported',
        ),
        (dict(architectures=None), "architectures = null; it must be a list of one of Qwen2ForCausalLM"),
    ],
)
def test_the_sentence_has_the_field_the_value_and_what_it_must_be(tmp_path, change, words):
    with pytest.raises(UserError) as caught:
        shape_of(tmp_path, MINIMAL[QWEN2] | change)
    assert f"{tmp_path / 'config.json'}: {words}" in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("[]", "is a JSON list and must be an object"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\ufeff{}", "is not JSON"),
    ],
)
def test_a_file_that_is_no_object_gets_a_sentence(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_shape(tmp_path)


def test_equal_statements_of_rotary_positions_may_stand_twice(tmp_path):
    once = shape_of(tmp_path, MINIMAL[DEEPSEEK] | {"rope_scaling": YARN})
    older = {"type": "yarn", **{key: value for key, value in YARN.items() if key != "rope_type"}}
    assert (
        shape_of(tmp_path, MINIMAL[DEEPSEEK] | {"rope_scaling": older, "rope_parameters": YARN, "rope_theta": 10000})
        == once
    )


@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_published_file_with_damage_anywhere_gets_a_shape_or_a_sentence(tmp_path, name, data):
    good = PUBLISHED[name]
    content = data.draw(damaged(json.dumps(good).encode()) | replaced(good).map(lambda tree: json.dumps(tree).encode()))
    (tmp_path / "config.json").write_bytes(content)
    try:
        read_shape(tmp_path)
    except UserError as error:
        assert "\n" not in str(error).strip() and str(tmp_path / "config.json") in str(error)

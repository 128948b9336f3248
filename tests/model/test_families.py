"""Shapes and tables of weights, counted by hand and compared with what transformers writes.

python -m pytest tests/model/test_families.py
"""

import json
from pathlib import Path

import pytest

from r1zero.config import Model, UserError
from r1zero.model.families import model_shape, read_shape
from r1zero.model.weights import weights
from tests import fast
from tests.model.config_values import MINIMAL, QWEN2
from tests.oracles.published import PUBLISHED
from tests.oracles.transformers_model import MODELS

ROOT = Path(__file__).parents[2]
V3 = PUBLISHED["DeepSeek-V3"]


def shape_of(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return read_shape(folder)


def test_deepseek_v3_has_671_billion_parameters_without_multi_token_prediction(tmp_path):
    shape = shape_of(tmp_path, V3)
    assert sum(w.size for w in weights(shape)) == 671_026_419_200
    routed = sum(w.size for w in weights(shape) if w.expert is not None)
    assert routed == 58 * 256 * 3 * 7168 * 2048
    assert shape.yarn.factor == 40.0 and shape.yarn.mscale_all_dim == 1.0


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("Llama-3.2-1B", 1_235_814_400),
        ("Mistral-Nemo-Base-2407", 12_247_782_400),
        ("Qwen3-30B-A3B", 30_532_122_624),
        ("DeepSeek-V2-Lite", 15_706_484_224),
        ("DeepSeek-V2.5", 235_741_434_880),
    ],
)
def test_the_parameters_of_a_published_file_are_as_many_as_published(tmp_path, name, parameters):
    assert sum(w.size for w in weights(shape_of(tmp_path, PUBLISHED[name]))) == parameters


@pytest.mark.parametrize("name", fast.only(["qwen2_tied", "qwen3_moe", "deepseek", "deepseek_v2_lite"], MODELS))
def test_the_table_names_exactly_the_tensors_that_transformers_writes(models, name):
    oracle = models(name)
    table = {w.name: w.shape for w in weights(read_shape(oracle.folder))}
    assert table == {key: tuple(value.shape) for key, value in oracle.weights().items()}


def test_weights_come_in_the_order_of_a_forward_pass(tmp_path):
    layers = [
        -1 if w.place == "first" else 61 if w.place == "last" else w.layer for w in weights(shape_of(tmp_path, V3))
    ]
    assert layers == sorted(layers)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="model.path"):
        read_shape(tmp_path / "nothing")


def test_a_stated_shape_must_be_that_of_the_folder(tmp_path):
    shape_of(tmp_path, MINIMAL[QWEN2])
    with pytest.raises(UserError, match="qwen2.5_7b.toml states layers = 28, .*config.json states 4"):
        model_shape(Model(path=str(tmp_path), shape=str(ROOT / "configs/model/qwen2.5_7b.toml")))

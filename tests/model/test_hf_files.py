"""The door to safetensors: slices, FP8 blocks, and folders that do not fit.

    python -m pytest tests/model/test_hf_files.py
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1zero.config import UserError
from r1zero.model import hf_files
from r1zero.model.families import read_shape, weights
from r1zero.model.hf_files import HfFolder


@pytest.fixture
def folder(models, tmp_path):
    """A copy of the latent model that a test may break."""
    return shutil.copytree(models("deepseek").folder, tmp_path / "model")


def opened(folder):
    shape = read_shape(folder)
    return HfFolder(folder, shape, weights(shape))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_slice_is_what_slicing_the_whole_gives(folder):
    source, whole = opened(folder), load_file(folder / "model.safetensors")
    for weight in weights(read_shape(folder)):
        part = tuple(slice(n // 4, n // 2) for n in weight.shape)
        assert torch.equal(source.read(weight, part), whole[weight.name][part])


def test_missing_tensors_are_listed(folder):
    rewrite(folder, lambda t: [t.pop(name) for name in ("model.norm.weight", "model.layers.2.mlp.experts.3.up_proj.weight")])
    with pytest.raises(UserError, match=r"2 of \d+ tensors are missing \(model.layers.2.mlp.experts.3.up_proj.weight, model.norm.weight\)"):
        opened(folder)


def test_unknown_tensors_are_listed_and_those_of_multi_token_prediction_left_out(folder):
    rewrite(folder, lambda t: t.update({"model.layers.4.eh_proj.weight": torch.zeros(2), "model.layers.4.mlp.gate.weight": torch.zeros(2)}))
    opened(folder)
    rewrite(folder, lambda t: t.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(2)}))
    with pytest.raises(UserError, match="1 tensors are not part of DeepseekV3ForCausalLM .model.layers.1.self_attn.q_proj.bias"):
        opened(folder)


def test_another_shape_than_the_configs_is_named(folder):
    rewrite(folder, lambda t: t.update({"lm_head.weight": torch.zeros(7, 64)}))
    with pytest.raises(UserError, match=r"lm_head.weight has shape \[7, 64\], config.json asks for \[128, 64\]"):
        opened(folder)


@pytest.mark.parametrize("kept", [0.9, 0.001])
def test_a_torn_file_is_named(folder, kept):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:int(len(data) * kept)])
    with pytest.raises(UserError, match="model.safetensors: is torn"):
        opened(folder)


def test_a_missing_file_is_named(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(UserError, match="model-00001-of-00002.safetensors: is missing"):
        opened(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is missing; the folder must hold model.safetensors"):
        opened(folder)


@pytest.mark.parametrize("cut", [(slice(0, 300), slice(0, 200)), (slice(130, 270), slice(5, 199)), (slice(128, 256), slice(128, 200)),
                                 (slice(299, 300), slice(0, 1))])
def test_fp8_blocks_are_scaled_as_by_a_loop_over_elements(folder, cut):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(300, 200, generator=generator).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2, generator=generator) + 0.5
    expected = torch.tensor([[float(values[i, j].float()) * float(scales[i // 128, j // 128]) for j in range(cut[1].start, cut[1].stop)]
                             for i in range(cut[0].start, cut[0].stop)])
    found = hf_files.dequantise(values[cut], scales[cut[0].start // 128:-(-cut[0].stop // 128), cut[1].start // 128:-(-cut[1].stop // 128)],
                                cut[0].start % 128, cut[1].start % 128)
    assert torch.equal(found, expected)


def test_an_fp8_folder_reads_like_its_dequantised_self(folder):
    name = "model.layers.0.mlp.down_proj.weight"
    values = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
    rewrite(folder, lambda t: t.update({name: values, f"{name}_scale_inv": torch.tensor([[0.25]])}))
    weight = next(w for w in weights(read_shape(folder)) if w.name == name)
    assert torch.equal(opened(folder).read(weight, (slice(0, 64), slice(48, 96))), values.float()[:, 48:] * 0.25)


def test_fp8_values_without_their_scales_are_named(folder):
    name = "model.layers.0.mlp.down_proj.weight"
    rewrite(folder, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(UserError, match="1 FP8 tensors have no scales .*mlp.down_proj.weight"):
        opened(folder)

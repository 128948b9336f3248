"""FP8 checkpoints: values times the scale of their block, whatever the block's size.

python -m pytest tests/checkpoint/test_fp8.py
"""

import json

import pytest
import torch

from r1zero.checkpoint import hf_files
from r1zero.config import UserError
from r1zero.model.families import read_shape
from r1zero.model.weights import weights
from tests.model.folders import opened, rewrite


@pytest.mark.parametrize("block", [(128, 128), (64, 32), (48, 100)])
@pytest.mark.parametrize(
    "cut",
    [
        (slice(0, 300), slice(0, 200)),
        (slice(130, 270), slice(5, 199)),
        (slice(128, 256), slice(128, 200)),
        (slice(299, 300), slice(0, 1)),
    ],
)
def test_fp8_blocks_are_scaled_as_by_a_loop_over_elements(cut, block):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(300, 200, generator=generator).to(torch.float8_e4m3fn)
    rows, columns = cut
    scales = torch.rand(-(-300 // block[0]), -(-200 // block[1]), generator=generator) + 0.5
    expected = torch.tensor(
        [
            [
                float(values[i, j].float()) * float(scales[i // block[0], j // block[1]])
                for j in range(columns.start, columns.stop)
            ]
            for i in range(rows.start, rows.stop)
        ]
    )
    touched = scales[
        rows.start // block[0] : -(-rows.stop // block[0]), columns.start // block[1] : -(-columns.stop // block[1])
    ]
    found = hf_files.dequantise(values[cut], touched, (rows.start % block[0], columns.start % block[1]), block)
    assert torch.equal(found, expected)


NAME = "model.layers.0.mlp.down_proj.weight"  # (64, 96)


def in_fp8(folder, block, scales, fields=()):
    values = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
    rewrite(folder, lambda t: t.update({NAME: values} | ({f"{NAME}_scale_inv": scales} if scales is not None else {})))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": block,
    } | dict(fields)
    (folder / "config.json").write_text(json.dumps(config))
    return values.float()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu], ids=str)
@pytest.mark.parametrize("block", [[128, 128], [64, 32], [48, 100], [1, 96]], ids=str)
def test_an_fp8_folder_reads_like_its_dequantised_self_whatever_its_blocks(folder, block, kind):
    count = (-(-64 // block[0]), -(-96 // block[1]))
    scales = 2.0 ** torch.randint(-4, 5, count, generator=torch.Generator().manual_seed(2))
    values = in_fp8(folder, block, scales.to(kind))
    expected = values * scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:64, :96]
    weight, source = next(w for w in weights(read_shape(folder)) if w.name == NAME), opened(folder)
    for cut in ((slice(0, 64), slice(0, 96)), (slice(0, 64), slice(48, 96)), (slice(13, 50), slice(0, 96))):
        assert torch.equal(source.read(weight, cut), expected[cut])


@pytest.mark.parametrize(
    "scales, sentence",
    [
        (None, f"{NAME} is of type F8_E4M3 and has no scales"),
        (
            torch.ones(2, 2),
            (
                r"_scale_inv has shape \[2, 2\] and type F32; with weight_block_size = \[64, 32\] .* scales of shape "
                r"\[1, 3\]"
            ),
        ),
        (torch.ones(1, 1), r"_scale_inv has shape \[1, 1\]"),
        (torch.ones(3), r"_scale_inv has shape \[3\]"),
        (torch.ones(1, 3, dtype=torch.int32), "and type I32; with weight_block_size"),
    ],
)
def test_scales_that_do_not_fit_the_weight_and_its_blocks_are_refused(folder, scales, sentence):
    in_fp8(folder, [64, 32], scales)
    with pytest.raises(UserError, match=sentence):
        opened(folder)


def test_fp8_values_need_a_block_size_and_other_values_no_scales(folder):
    in_fp8(folder, [64, 32], torch.ones(1, 3))
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is of type F8_E4M3, but config.json has no quantization_config"):
        opened(folder)
    rewrite(folder, lambda t: t.update({NAME: t[NAME].float()}))
    with pytest.raises(UserError, match="is of type F32 and has scales"):
        opened(folder)

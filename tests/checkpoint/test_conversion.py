"""Weights to megatron's checkpoint and back: bit for bit, through megatron's own loader, by any number of processes,
after a kill.

python -m pytest tests/checkpoint/test_conversion.py
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from r1zero.checkpoint import conversion
from r1zero.checkpoint.conversion import Workers
from r1zero.config import Checkpoint, Model, UserError
from r1zero.model.families import read_shape
from tests import fast
from tests.model import cases
from tests.model.cases import grid
from tests.oracles import transformers_model as oracle

ALONE = Workers(0, 1, lambda: None)


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Many files of tiny models."""
    monkeypatch.setattr(conversion, "SMALLEST", 40_000)


def quiet(total):
    return lambda done: None


def to_mcore(source, out, workers=ALONE, progress=quiet):
    conversion.to_mcore(read_shape(source), Path(source), out, workers, progress)
    return out


def to_hf(source, checkpoint, out, workers=ALONE, progress=quiet):
    conversion.to_hf(read_shape(source), Model(path=str(source)), checkpoint, out, workers, progress)
    return out


def tensors(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def check_equal(folder, expected):
    found = tensors(folder)
    assert found.keys() == expected.keys()
    assert [
        name for name, t in expected.items() if found[name].dtype != t.dtype or not torch.equal(found[name], t)
    ] == []


def in_bf16(source, folder):
    """A copy of a model in bf16, the router's bias left as it is."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("oracle"))
    kept = {
        n: t if n.endswith("e_score_correction_bias") else t.bfloat16()
        for n, t in load_file(folder / "model.safetensors").items()
    }
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "qwen2",
        "qwen2_tied",
        "qwen3",
        "llama",
        "mistral",
        "qwen3_moe",
        "deepseek",
        "deepseek_no_q_lora",
        "deepseek_v2",
        "deepseek_v2_lite",
        "moonlight",
    ],
)
def test_a_round_trip_is_bit_exact_and_plain_transformers_loads_it(models, tmp_path, name):
    source = in_bf16(models(name).folder, tmp_path / "source")
    out = to_hf(source, to_mcore(source, tmp_path / "mcore"), tmp_path / "out")
    check_equal(out, tensors(source))
    files = sorted(p.name for p in out.glob("*.safetensors"))
    assert len(files) > 2 and set(
        json.loads((out / "model.safetensors.index.json").read_text())["weight_map"].values()
    ) == set(files)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    expected = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), expected.state_dict().values(), strict=True)
    )
    assert not list(tmp_path.glob("*.part"))


def by_megatron_and_by_slices(rank, model, place, path):
    """Names of weights that differ from the HF folder's when megatron's own loader, and when ours, fills a wiped
    model."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from megatron.core.utils import unwrap_model

    from r1zero.checkpoint import training

    built = cases.build_on(model, place, trainable=False)
    expected = cases.gathered(built, model, lambda parameter: parameter)
    bare = unwrap_model(built.chunks[0])
    fp32 = [b for name, b in bare.named_buffers() if name.endswith("expert_bias")]
    kept = [b.clone() for b in fp32]

    def load_by_megatron():
        state = {
            name: value for name, value in bare.sharded_state_dict().items() if not isinstance(value, ShardedObject)
        }
        bare.load_state_dict(dist_checkpointing.load({"model": state}, str(path))["model"], strict=False)

    wrong = []
    for load in (
        load_by_megatron,
        lambda: training.load_weights(
            built.chunks, built.shape, built.grids, str(path), str(model.folder), built.hosts
        ),
    ):
        with torch.no_grad():
            for tensor in (*bare.parameters(), *fp32):
                tensor.fill_(7)
        load()
        found = cases.gathered(built, model, lambda parameter: parameter)
        wrong += [name for name in expected if not torch.equal(found[name], expected[name])]
        wrong += ["expert_bias" for a, b in zip(fp32, kept, strict=True) if not torch.equal(a, b)]
    return wrong


READ = [
    ("qwen2", 1, grid()),
    ("qwen2", 2, grid(tp=2)),
    ("qwen2_tied", 2, grid(pp=2, layers=(3, 1))),
    ("qwen3", 2, grid(tp=2)),
    ("qwen3_moe", 2, grid(ep=2)),
    ("deepseek", 2, grid(ep=2)),
    ("deepseek", 2, grid(tp=2)),
    ("deepseek_v2", 2, grid(ep=2)),
]


@pytest.mark.parametrize("name, size, place", fast.only([READ[1], READ[5]], READ))
def test_megatrons_own_loader_and_ours_read_it_on_any_grid(ranks, models, tmp_path, name, size, place):
    path = to_mcore(models(name).folder, tmp_path / "mcore")
    assert ranks.run(by_megatron_and_by_slices, models(name), place, path, size=size) == [[]] * size


def save_weights(rank, model, place, folder):
    from r1zero.checkpoint import saving

    built = cases.build_on(model, place)
    saving.save(folder, 1, built.trained, {}, keep=Checkpoint())


@pytest.mark.parametrize(
    "name, size, place", [("qwen2", 2, grid(tp=2)), ("qwen2_tied", 2, grid(pp=2)), ("deepseek", 2, grid(tp=2, ep=2))]
)
def test_a_runs_checkpoint_becomes_a_folder_whatever_layout_wrote_it(ranks, models, tmp_path, name, size, place):
    source = models(name).folder
    ranks.run(save_weights, models(name), place, tmp_path / "checkpoints", size=size)
    check_equal(to_hf(source, tmp_path / "checkpoints" / "step_1", tmp_path / "out"), tensors(source))


def test_fp8_blocks_become_the_bf16_that_they_stand_for_and_multi_token_prediction_is_left_out(models, tmp_path):
    source = in_bf16(models("deepseek").folder, tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"  # (64, 96)
    values, scale = weights[name].float().div(0.03).to(torch.float8_e4m3fn), torch.tensor([[0.03, 0.05]])
    extra = {"model.layers.4.eh_proj.weight": torch.ones(2, 2)}
    save_file(
        {**weights, name: values, f"{name}_scale_inv": scale, **extra},
        source / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 48]}})
    )
    out = to_hf(source, to_mcore(source, tmp_path / "mcore"), tmp_path / "out")
    scaled = torch.tensor(
        [[float(v) * float(scale[0, j // 48]) for j, v in enumerate(row)] for row in values.float()]
    ).bfloat16()
    check_equal(out, {**weights, name: scaled})
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


def together(size, convert):
    """`size` workers, as threads with a real barrier."""
    barrier = threading.Barrier(size)
    failures = []

    def work(rank):
        try:
            convert(Workers(rank, size, barrier.wait))
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures, failures


class Killed(BaseException):
    pass


def dying_after(files):
    def progress(total):
        left = [files]

        def done(size):
            left[0] -= 1
            if not left[0]:
                raise Killed

        return done

    return progress


def test_after_a_kill_any_number_of_workers_go_on_after_the_files_that_are_whole(models, tmp_path):
    source = models("deepseek").folder
    with pytest.raises(Killed):
        to_mcore(source, tmp_path / "mcore", progress=dying_after(3))
    part = tmp_path / "mcore.part"
    whole = {p.name: p.stat().st_mtime_ns for p in part.glob("*.distcp")}
    assert len(whole) == 3 and not (tmp_path / "mcore").exists()
    (part / "__3_0.distcp").write_bytes(b"half of a file")
    together(3, lambda workers: to_mcore(source, tmp_path / "mcore", workers))
    assert {name: (tmp_path / "mcore" / name).stat().st_mtime_ns for name in whole} == whole
    with pytest.raises(Killed):
        to_hf(source, tmp_path / "mcore", tmp_path / "out", progress=dying_after(2))
    together(2, lambda workers: to_hf(source, tmp_path / "mcore", tmp_path / "out", workers))
    check_equal(tmp_path / "out", tensors(source))
    assert not list(tmp_path.glob("*.part")) and not list((tmp_path / "out").glob("*.done")) + list(
        (tmp_path / "mcore").glob("*.done")
    )


def test_what_another_model_began_is_not_gone_on_with(models, tmp_path):
    with pytest.raises(Killed):
        to_mcore(models("qwen2").folder, tmp_path / "mcore", progress=dying_after(1))
    with pytest.raises(UserError, match="mcore.part: was begun with another model or checkpoint; remove it"):
        to_mcore(models("qwen3").folder, tmp_path / "mcore")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_bad_input_gets_a_sentence_and_nothing_stands_in_place(models, tmp_path):
    source = models("qwen2").folder
    mcore = to_mcore(source, tmp_path / "mcore")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="mcore: exists already"):
        to_mcore(source, mcore)
    no_room = mock.patch.object(shutil, "disk_usage", lambda path: mock.Mock(free=1000))
    with no_room, pytest.raises(UserError, match="out: needs 0.00. GB more"):
        to_hf(source, mcore, out)
    with pytest.raises(
        UserError, match=r"is a checkpoint of another model: it lacks \d+ tensors \(model.layers.0.self_attn"
    ):
        to_hf(models("qwen3").folder, mcore, out)
    with pytest.raises(UserError, match="nowhere: is not a complete checkpoint .manifest.json is missing"):
        to_hf(source, tmp_path / "nowhere", out)
    partial = tmp_path / "partial"
    shutil.copytree(source, partial)
    save_file({"model.norm.weight": torch.ones(64)}, partial / "model.safetensors")
    with pytest.raises(UserError, match=r"partial: \d+ of \d+ tensors are missing"):
        to_hf(partial, mcore, out)
    flip(mcore / "__1_0.distcp")
    with pytest.raises(UserError, match="mcore: is corrupt .__1_0.distcp has other content than was written"):
        to_hf(source, mcore, out)
    assert not out.exists()


def truncated(tensors, folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def without_scale(tensors, folder):
    name = "model.layers.0.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors")


def of_another_config(tensors, folder):
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, "intermediate_size": 2 * stated["intermediate_size"]}))


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (truncated, "model.safetensors: is corrupt"),
        (without_scale, "down_proj.weight is of type F8_E4M3, but config.json has no quantization_config"),
        (of_another_config, r"mlp.gate_proj.weight has shape \[\d+, 64\], but config.json implies"),
    ],
)
def test_a_model_that_is_not_whole_is_refused_before_anything_is_written(models, tmp_path, spoil, sentence):
    source = tmp_path / "source"
    shutil.copytree(models("deepseek").folder, source)
    spoil(load_file(source / "model.safetensors"), source)
    with pytest.raises(UserError, match=sentence):
        to_mcore(source, tmp_path / "mcore")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_too_small_a_disk_is_told_before_anything_is_written(models, tmp_path):
    with (
        mock.patch.object(shutil, "disk_usage", lambda path: mock.Mock(free=1000)),
        pytest.raises(UserError, match="mcore: needs 0.00. GB more"),
    ):
        to_mcore(models("qwen2").folder, tmp_path / "mcore")
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_a_sentence_and_leaves_nothing(models, tmp_path):
    (tmp_path / "file").write_text("")
    for out, why in ((tmp_path / "file" / "mcore", "Not a directory"), (tmp_path / ("x" * 5000), "File name too long")):
        with pytest.raises(UserError, match=f"cannot be written .{why}.; name a folder that can be, or make room"):
            to_mcore(models("qwen2").folder, out)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_up_is_a_sentence_and_the_next_start_goes_on(models, tmp_path):
    """RLIMIT_FSIZE stands for the disk: a file that grows beyond it cannot be written."""
    source, before = models("qwen2").folder, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(UserError, match="mcore: cannot be written .File too large"):
            to_mcore(source, tmp_path / "mcore")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["mcore.part"]
    check_equal(to_hf(source, to_mcore(source, tmp_path / "mcore"), tmp_path / "out"), tensors(source))


def test_a_link_to_nothing_yet_stays_and_what_it_leads_to_is_made(models, tmp_path):
    source = models("qwen2").folder
    (tmp_path / "big").mkdir()
    for name in ("mcore", "out"):
        (tmp_path / name).symlink_to(f"big/{name}")
    check_equal(to_hf(source, to_mcore(source, tmp_path / "mcore"), tmp_path / "out"), tensors(source))
    assert all((tmp_path / name).is_symlink() for name in ("mcore", "out"))
    assert sorted(p.name for p in (tmp_path / "big").iterdir()) == ["mcore", "out"]


def test_a_runs_folder_in_place_of_a_checkpoint_names_those_below_it(models, tmp_path):
    source = models("qwen2").folder
    steps = [tmp_path / "run" / "checkpoints" / name for name in ("step_5", "step_20", "step_30.tmp")]
    for step in steps:
        step.parent.mkdir(parents=True, exist_ok=True)
        to_mcore(source, step)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step_20")
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        with pytest.raises(UserError) as caught:
            to_hf(source, folder, tmp_path / "out")
        assert (
            str(caught.value)
            == f"{folder}: contains checkpoints but is not one itself; name one of them: {steps[0]}, {steps[1]}"
        )
    assert not (tmp_path / "out").exists()


def load_made_of_another(rank, model, path):
    from r1zero.checkpoint import training

    built = cases.build_on(model, grid(), trainable=False)
    try:
        training.load_weights(built.chunks, built.shape, built.grids, str(path), str(model.folder), built.hosts)
    except UserError as error:
        return str(error)


def test_training_refuses_a_checkpoint_made_of_other_weights_of_the_same_shape(ranks, models, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(models("qwen2").folder, other)
    save_file({n: t + 1e-3 for n, t in load_file(other / "model.safetensors").items()}, other / "model.safetensors")
    path = to_mcore(other, tmp_path / "mcore")
    for sentence in ranks.run(load_made_of_another, models("qwen2"), path, size=2):
        assert "was made from other weights" in sentence and "run convert.py to-mcore again" in sentence
    assert ranks.run(load_made_of_another, oracle.Oracle(other), path, size=2) == [None, None]


@pytest.mark.slow
def test_the_command_converts_under_mpirun_and_ends_with_2_and_a_sentence_where_it_cannot(models, tmp_path):
    (tmp_path / "run.toml").write_text('[model]\npath = "nowhere"\n')
    override = f"model.path={models('deepseek').folder}"
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "-np", "2", "--oversubscribe"]

    def convert(*arguments, launcher=()):
        command = [*launcher, sys.executable, "-W", "ignore", "convert.py", *map(str, arguments), override]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert convert("to-mcore", tmp_path / "run.toml", tmp_path / "mcore", launcher=mpirun).returncode == 0
    assert convert("to-hf", tmp_path / "run.toml", tmp_path / "mcore", tmp_path / "out").returncode == 0
    check_equal(tmp_path / "out", tensors(models("deepseek").folder))
    again = convert("to-hf", tmp_path / "run.toml", tmp_path / "mcore", tmp_path / "out")
    assert again.returncode == 2
    assert (
        again.stderr.strip().splitlines()[-1]
        == f"convert.py: {tmp_path / 'out'}: exists already; name a new folder, or remove it"
    )

"""pytest tests/miniature/test_make.py"""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from r1zero.miniature import __main__ as miniature
from r1zero.miniature import base, problems, solve, tokenizer
from tests import fast

STEPS = 4


def make(out: Path, family: str, *more: str) -> Path:
    options = ["--family", family, "--steps", str(STEPS), "--problems", "20", *more]
    assert miniature.main(["--threads", "1", "make", str(out), *options]) == 0
    return out


@pytest.fixture(scope="module", params=fast.only(["qwen2"], ["qwen2", "deepseek_v3"]))
def made(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, make(tmp_path_factory.mktemp(request.param) / "mini", request.param)


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "base" / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_the_same_seed_makes_the_same_files_and_another_seed_others(made, tmp_path):
    family, out = made
    again, other = make(tmp_path / "again", family), make(tmp_path / "other", family, "--seed", "2")
    assert digest(again) == digest(out)
    assert tensors(other)["lm_head.weight"].ne(tensors(out)["lm_head.weight"]).any()


def test_plain_transformers_computes_what_the_trained_model_computed(made, tmp_path):
    """The model that was trained, rounded to bf16 in memory, against the one read back from its files."""
    family, _ = made
    encode = tokenizer.build()
    recipe = base.recipes(encode.eos_token_id)[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(recipe.config, dtype=torch.float32, attn_implementation="eager")
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    ids = torch.tensor([encode(problems.prompt("7+8-3")).input_ids])
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
        base.save(model, encode, tmp_path)
        read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
        assert torch.equal(read.eval()(input_ids=ids).logits, logits)


def test_names_and_types_of_the_files_are_those_of_the_published_models(made):
    family, out = made
    found = tensors(out)
    dtypes = {name: tensor.dtype for name, tensor in found.items()}
    bias = {name for name in found if name.endswith("e_score_correction_bias")}
    assert all(dtypes[name] == (torch.float32 if name in bias else torch.bfloat16) for name in found)
    expected = {
        "qwen2": {"model.layers.2.self_attn.k_proj.bias", "model.layers.0.mlp.gate_proj.weight", "lm_head.weight"},
        "deepseek_v3": {
            "model.layers.0.mlp.gate_proj.weight",
            "model.layers.1.mlp.experts.7.down_proj.weight",
            "model.layers.2.mlp.shared_experts.up_proj.weight",
            "model.layers.1.mlp.gate.e_score_correction_bias",
            "model.layers.1.self_attn.kv_a_proj_with_mqa.weight",
        },
    }[family]
    assert expected <= set(found)
    assert found["lm_head.weight"].shape == (tokenizer.VOCAB_SIZE, 128)
    assert all(found[name].any() for name in found), "a tensor of nothing but zeros hides a loader that drops it"


def test_the_deepseek_shape_is_one_that_megatron_and_vllm_route_alike(made):
    family, out = made
    if family != "deepseek_v3":
        pytest.skip("dense")
    config = json.loads((out / "base" / "config.json").read_text())
    assert config["kv_lora_rank"] + config["qk_rope_head_dim"] in (320, 512, 576)
    assert config["num_experts_per_tok"] == 2 * config["topk_group"]
    assert (config["topk_method"], config["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert config["norm_topk_prob"] is True and config["first_k_dense_replace"] == 1


def test_problems_beside_the_base_are_disjoint_and_right(made):
    rows = {name: problems.read(made[1] / "problems" / f"{name}.jsonl") for name in ("train", "heldout")}
    assert (len(rows["train"]), len(rows["heldout"])) == (20, 200)
    for name, own in rows.items():
        assert {problems.part(row["problem"]) for row in own} == {name}
        assert all(row["answer"] == problems.answer(row["problem"]) for row in own)


def test_what_is_made_already_is_refused_in_a_sentence_and_left_alone(made, capsys):
    before = digest(made[1])
    assert miniature.main(["--threads", "1", "make", str(made[1])]) == 2
    assert "exists: remove it" in capsys.readouterr().err
    assert digest(made[1]) == before


def test_evaluate_and_show_read_what_make_wrote(made, capsys):
    folder, rows = str(made[1] / "base"), str(made[1] / "problems" / "heldout.jsonl")
    assert miniature.main(["--threads", "1", "evaluate", folder, rows, "--limit", "3"]) == 0
    assert "0 of 3 problems solved greedily" in capsys.readouterr().out
    assert miniature.main(["--threads", "1", "show", folder, folder, rows]) == 0
    assert "before: not solved" in capsys.readouterr().out


def test_a_folder_without_a_model_is_named(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    problems.write(rows, ["7+8-3"])
    assert miniature.main(["--threads", "1", "evaluate", str(tmp_path / "nothing"), str(rows)]) == 2
    assert "nothing has no config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("response", "solved"),
    [
        ("<think> 7+8=15 15-3=12 </think><answer> \\boxed{12} </answer>", True),
        ("<think> </think>\n<answer> \\boxed{1} then \\boxed{12} </answer>", True),
        ("<think> </think><answer> \\boxed{12} then \\boxed{1} </answer>", False),
        ("<think> \\boxed{12} </think><answer> 12 </answer>", False),
        ("<think> </think><answer> \\boxed{} </answer>", False),
        ("<think> </think><answer> \\boxed{12} </answer> and", False),
        ("7+8=15 15-3=12 \\boxed{12}", False),
    ],
)
def test_solved_means_the_whole_format_and_the_last_box_right(response, solved):
    assert solve.Answered("7+8-3", "12", response).solved is solved


def test_batches_score_the_answers_and_nothing_else():
    documents = [([1, 2, 3], [4, 9]), ([1], [5, 6, 9])]
    ((ids, labels),) = base.batches(iter(documents), 2, 9, random.Random(0))
    rows = {tuple(row): tuple(label) for row, label in zip(ids.tolist(), labels.tolist(), strict=True)}
    none = base.NOT_SCORED
    assert rows == {(1, 2, 3, 4, 9): (none, none, none, 4, 9), (1, 5, 6, 9, 9): (none, 5, 6, 9, none)}


def test_the_learning_rate_warms_up_and_ends_near_nothing():
    shares = [base.learning_rate(step, 1500) for step in range(1500)]
    assert shares[0] == pytest.approx(1 / 30) and max(shares) == pytest.approx(0.98, abs=0.01)
    assert shares[-1] == pytest.approx(0.02, abs=0.001)


def test_a_link_stays_and_what_it_leads_to_is_made(tmp_path):
    (tmp_path / "mini").symlink_to("big/mini")
    make(tmp_path / "mini", "qwen2")
    assert (tmp_path / "mini").is_symlink() and sorted(p.name for p in (tmp_path / "big" / "mini").iterdir()) == [
        "base",
        "problems",
    ]


def test_an_output_that_cannot_be_written_is_a_sentence_and_leaves_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert miniature.main(["--threads", "1", "make", str(tmp_path / "file" / "mini")]) == 2
    assert "mini: cannot be written (Not a directory); make room, or name another folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "content, why",
    [
        (None, "cannot be read (No such file or directory)"),
        ("", "has no problem"),
        ("{", ":1: is not JSON"),
        ("[]", ":1: has no texts"),
        ('{"problem": "1+1", "answer": "2"}\n{"problem": 1}', ":2: has no texts"),
    ],
)
def test_problems_that_make_did_not_write_are_a_sentence(content, why, tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    if content is not None:
        path.write_text(content)
    assert miniature.main(["--threads", "1", "evaluate", str(tmp_path), str(path)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and why in said and "name a file of problems that `make` wrote" in said


@pytest.mark.parametrize(
    "options",
    [
        ["--threads", "0"],
        ["make", "x", "--seed", "-1"],
        ["make", "x", "--seed", str(2**63)],
        ["make", "x", "--steps", "0"],
        ["make", "x", "--problems", "-5"],
        ["make", "x", "--seed", "a"],
    ],
)
def test_a_number_that_makes_no_sense_is_refused(options, capsys):
    with pytest.raises(SystemExit) as caught:
        miniature.main(options)
    assert caught.value.code == 2 and "error: argument" in capsys.readouterr().err

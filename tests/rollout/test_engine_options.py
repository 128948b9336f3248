"""vLLM's own options: passed on, or refused with the reason.

python -m pytest tests/rollout/test_engine_options.py
"""

import dataclasses
import re

import pytest

from r1zero import config
from r1zero.config import UserError
from r1zero.rollout import engine_options
from r1zero.rollout.arguments import engine_arguments


def known() -> set[str]:
    from vllm.engine.arg_utils import EngineArgs

    return {field.name for field in dataclasses.fields(EngineArgs)}


def test_every_option_that_is_refused_or_set_here_is_one_of_vllm():
    """A name that vLLM no longer has would be refused for nothing, or hide a new one that matters."""
    assert set(engine_options.REFUSED) - known() <= {"calculate_kv_scales", "prefill_context_parallel_size", "nnodes"}
    mine = set(engine_arguments(config.Config(), {}))
    free = {"enable_prefix_caching"}
    assert mine - free <= set(engine_options.REFUSED), (
        "an argument that this project sets is refused, or free to change"
    )


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"logprobs_mode": "raw_logprobs"}, "rollout.engine.logprobs_mode cannot be set: the engine's logprobs"),
        ({"distributed_executor_backend": "ray"}, "runs inside the ranks of the job"),
        ({"max_num_seqs": 8}, "this project has its own key for it, rollout.max_num_seqs; remove it"),
        *(
            ({name: "fp8"}, f"rollout.engine.{name} cannot be set: the engine would compute in another precision")
            for name in ("quantization", "kv_cache_dtype", "calculate_kv_scales")
        ),
        ({"speculative_config": {}}, "each token is drawn by its number in the response"),
        ({"enable_chunked_prefill": False}, "latent attention ignores the prefix cache"),
        ({"enforce_eager": True}, "this project has its own key for it, rollout.graph; remove it"),
        ({"seed": 2}, "this project has its own key for it, run.seed; remove it"),
    ],
)
def test_an_option_that_would_break_correctness_is_refused_with_the_reason(options, sentence):
    with pytest.raises(UserError) as error:
        engine_options.check(options)
    assert sentence in str(error.value)


RISKY = re.compile(
    r"(data_parallel|spec|elastic|eplb)_|_(elastic|eplb)|quantiz|revision|watermark_|sharded_sampling|master_"
)
HARMLESS = {"allow_deprecated_quantization", "per_request_spec_decode_metrics"}
"""They have no effect without an option that is refused."""


def test_every_option_that_names_a_refused_kind_is_refused():
    """vLLM has several options for one thing: speculative_config and spec_method, quantization and its config."""
    risky = {name for name in known() if RISKY.search(name)} - HARMLESS
    assert len(risky) > 20 and risky - set(engine_options.REFUSED) == set()


NPU = {"additional_config": {"weight_nz_mode": 0, "ascend_compilation_config": {"enable_npugraph_ex": False}}}


def test_an_object_adds_keys_to_that_of_this_project():
    given = {"additional_config": {"dump": True, "ascend_compilation_config": {"fuse": 1}}, "block_size": 32}
    config_of_both = {
        "weight_nz_mode": 0, "dump": True, "ascend_compilation_config": {"enable_npugraph_ex": False, "fuse": 1}
    }  # fmt: skip
    assert engine_options.merge(NPU, given) == {"additional_config": config_of_both, "block_size": 32}
    assert engine_options.merge({"block_size": 16}, {"block_size": 32}) == {"block_size": 32}


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"weight_nz_mode": 2}, "rollout.engine.additional_config.weight_nz_mode = 2: this project sets it to 0, and"),
        (
            {"ascend_compilation_config": {"enable_npugraph_ex": True}},
            "rollout.engine.additional_config.ascend_compilation_config.enable_npugraph_ex = true: this project sets ",
        ),
    ],
)
def test_an_object_that_contradicts_that_of_this_project_is_one_sentence(given, sentence):
    with pytest.raises(UserError) as error:
        engine_options.merge(NPU, {"additional_config": given})
    assert str(error.value).startswith(sentence)


def test_others_pass_and_a_misspelt_one_is_named():
    engine_options.check({"block_size": 32, "max_cudagraph_capture_size": 8})
    engine_options.check_known({"block_size": 32}, known())
    count = len(set(known()) - set(engine_options.REFUSED))
    for name, hint in (
        ("blok_size", "the nearest option is rollout.engine.block_size"),
        ("zzqqxx", f"none of the {count} options is similar"),
    ):
        with pytest.raises(UserError) as error:
            engine_options.check_known({name: 32}, known())
        assert str(error.value) == f"rollout.engine.{name}: the installed vLLM has no such option; {hint}"

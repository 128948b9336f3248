"""What the engine and the device module rely on in vllm-ascend, vLLM and torch_npu, checked in the pinned wheels'
sources.

No NPU is needed: the wheels are downloaded with --no-deps and read with `ast`. MindSpeed is on no index; what we
rely on there was read, not checked (launch/REVIEW.md).

    python -m pytest tests/rollout/test_vllm_ascend_api.py        # R1ZERO_WHEELS=folder keeps or brings the two wheels
"""

import ast
import re
from pathlib import Path

import pytest
import tomli

from tests import wheels

ASCEND, VLLM, TORCH = wheels.PINNED
ROOT = Path(__file__).parents[2]

# (wheel, module, class or function, arguments that we pass)
CALLS = [
    (
        VLLM,
        "vllm.entrypoints.llm",
        "LLM.__init__",
        (
            "model tokenizer skip_tokenizer_init trust_remote_code tensor_parallel_size dtype seed "
            "enforce_eager hf_overrides kv_cache_memory_bytes gpu_memory_utilization compilation_config **"
        ),
    ),
    (VLLM, "vllm.entrypoints.llm", "LLM.sleep", "level"),
    (VLLM, "vllm.entrypoints.llm", "LLM.wake_up", "tags"),
    (VLLM, "vllm.entrypoints.llm", "LLM.reset_prefix_cache", ""),
    (VLLM, "vllm.entrypoints.llm", "LLM.collective_rpc", "method kwargs"),
    (VLLM, "vllm.entrypoints.llm", "LLM.apply_model", "func"),
    (VLLM, "vllm.v1.engine.llm_engine", "LLMEngine.add_request", "request_id prompt params"),
    (VLLM, "vllm.v1.engine.llm_engine", "LLMEngine.step", ""),
    (VLLM, "vllm.v1.engine.llm_engine", "LLMEngine.has_unfinished_requests", ""),
    (VLLM, "vllm.v1.engine.llm_engine", "LLMEngine.abort_request", "request_ids"),
    (
        VLLM,
        "vllm.model_executor.model_loader.utils",
        "process_weights_after_loading",
        "model model_config target_device",
    ),
    (VLLM, "vllm.model_executor.models.deepseek_v2", "DeepseekV2ForCausalLM.load_weights", "weights"),
    (VLLM, "vllm.model_executor.models.qwen2", "Qwen2ForCausalLM.load_weights", "weights"),
    (VLLM, "vllm.model_executor.models.qwen3", "Qwen3ForCausalLM.load_weights", "weights"),
    (ASCEND, "vllm_ascend.worker.worker", "NPUWorker.sleep", "level"),
    (ASCEND, "vllm_ascend.worker.worker", "NPUWorker.wake_up", "tags"),
    (ASCEND, "vllm_ascend.worker.worker", "NPUWorker.get_model", ""),
    (ASCEND, "vllm_ascend.device_allocator.camem", "CaMemAllocator.get_instance", ""),
    (ASCEND, "vllm_ascend.device_allocator.camem", "CaMemAllocator.sleep", "offload_tags"),
    (ASCEND, "vllm_ascend.device_allocator.camem", "CaMemAllocator.wake_up", "tags"),
    (ASCEND, "vllm_ascend.ascend_config", "get_ascend_config", ""),
    (TORCH, "torch_npu.npu.utils", "set_device", "device"),
    (TORCH, "torch_npu.npu.memory", "empty_cache", ""),
    (TORCH, "torch_npu.npu.memory", "_set_allocator_settings", "settings"),
]

ENGINE_ARGS = [
    "model",
    "tokenizer",
    "dtype",
    "tensor_parallel_size",
    "distributed_executor_backend",
    "enable_expert_parallel",
    "load_format",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "enable_sleep_mode",
    "enable_return_routed_experts",
    "async_scheduling",
    "seed",
    "logprobs_mode",
    "hf_overrides",
    "compilation_config",
    "additional_config",
    "skip_tokenizer_init",
    "generation_config",
    "logits_processors",
]
SAMPLING = [
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "logprobs",
    "detokenize",
    "flat_logprobs",
    "stop_token_ids",
    "ignore_eos",
    "output_kind",
    "skip_clone",
    "prompt_logprobs",
    "extra_args",
]

ENVIRONMENT = {
    VLLM: (
        "vllm.envs",
        (
            "VLLM_DP_SIZE VLLM_DP_RANK VLLM_DP_RANK_LOCAL VLLM_DP_MASTER_IP VLLM_DP_MASTER_PORT "
            "VLLM_ENABLE_V1_MULTIPROCESSING VLLM_USE_V2_MODEL_RUNNER VLLM_PLUGINS VLLM_TARGET_DEVICE "
            "VLLM_LOGGING_LEVEL VLLM_USE_AOT_COMPILE "
            "VLLM_NO_USAGE_STATS"
        ),
    ),
    ASCEND: (
        "vllm_ascend.envs",
        (
            "VLLM_ASCEND_ENABLE_NZ VLLM_ASCEND_ENABLE_FUSED_MC2 VLLM_ASCEND_ENABLE_FLASHCOMM1 "
            "VLLM_ASCEND_ENABLE_MLAPO VLLM_ASCEND_BALANCE_SCHEDULING DYNAMIC_EPLB"
        ),
    ),
}


def node(wheel: str, module: str, qualname: str) -> ast.AST:
    tree = wheels.tree(wheel, module)
    assert tree is not None, f"{wheel} has no module {module}"
    found = wheels.find(tree, qualname)
    assert found is not None, f"{wheel}: {module} has no {qualname}"
    return found


@pytest.mark.parametrize("wheel, module, qualname, passed", CALLS, ids=lambda value: str(value).split("==")[0][:60])
def test_every_call_exists_with_the_arguments_we_pass(wheel: str, module: str, qualname: str, passed: str) -> None:
    function = node(wheel, module, qualname)
    assert isinstance(function, ast.FunctionDef)
    missing = set(passed.split()) - set(wheels.arguments(function))
    assert not missing, f"{qualname} takes {wheels.arguments(function)}"


def test_every_engine_argument_is_a_field_of_engine_args() -> None:
    assert set(ENGINE_ARGS) <= wheels.fields(node(VLLM, "vllm.engine.arg_utils", "EngineArgs"))


def test_every_sampling_parameter_is_a_field() -> None:
    assert set(SAMPLING) <= wheels.fields(node(VLLM, "vllm.sampling_params", "SamplingParams"))


@pytest.mark.parametrize("wheel", ENVIRONMENT)
def test_every_environment_variable_is_read(wheel: str) -> None:
    module, names = ENVIRONMENT[wheel]
    assert set(names.split()) <= wheels.strings(wheels.tree(wheel, module))


def test_a_variable_that_others_set_is_not_read_at_all() -> None:
    """VLLM_ASCEND_AUTO_DETECT_QUANTIZATION is set by other trainers; this release has no such switch, so we do not set
    it."""
    names = [name for name in wheels.wheel(ASCEND).namelist() if name.endswith(".py")]
    assert not [name for name in names if b"AUTO_DETECT_QUANTIZATION" in wheels.wheel(ASCEND).read(name)]


# The order of load, wake and reload (ascend engine) follows from these bodies; if one changes, so must the order.


def test_experts_are_transposed_after_loading_and_lose_their_weight_loader() -> None:
    body = wheels.source(
        node(
            ASCEND,
            "vllm_ascend.ops.fused_moe.fused_moe",
            "AscendUnquantizedFusedMoEMethod.process_weights_after_loading",
        )
    )
    for name in ("w13", "w2"):
        assert f"{name}_data = self._maybe_pad_weight(layer.{name}_weight.data).transpose(1, 2).contiguous()" in body
        assert f"layer.{name}_weight = torch.nn.Parameter({name}_data, requires_grad=False)" in body
    assert "weight_loader" not in body


def test_waking_transposes_experts_back_by_new_parameters_at_any_level() -> None:
    body = wheels.source(node(ASCEND, "vllm_ascend.worker.worker", "NPUWorker.wake_up"))
    assert "if self.vllm_config.quant_config is None and (tags is None or 'weights' in tags)" in body
    assert "if 'w2_weight' in name and param.shape[2] == hidden_size" in body
    assert "elif 'w13_weight' in name and param.shape[1] == hidden_size" in body
    assert body.count("param.transpose(1, 2)") == 2 and body.count("setattr(parent_module, param_name") == 2
    assert "weight_loader" not in body
    shape = tomli.loads((ROOT / "configs" / "model" / "deepseek_v3_671b.toml").read_text())
    sizes = 2 * shape["moe_intermediate_size"], shape["moe_intermediate_size"]
    assert shape["hidden_size"] not in sizes, "load layout [E, 2I, H], [E, H, I] would be mistaken for processed"


def test_waking_and_updating_refuse_the_nz_format() -> None:
    assert "if nz_mode:\n" in wheels.source(node(ASCEND, "vllm_ascend.worker.worker", "NPUWorker.wake_up"))
    config = wheels.source(node(ASCEND, "vllm_ascend.ascend_config", "AscendConfig"))
    assert "'weight_nz_mode', 'VLLM_ASCEND_ENABLE_NZ'" in config
    for key, default in {"enable_cpu_binding": True, "enable_sleep_mode_extra_cleanup": False}.items():
        assert f"additional_config.get('{key}', {default})" in config


def test_deep_sleep_keeps_buffers_only() -> None:
    body = wheels.source(node(ASCEND, "vllm_ascend.worker.worker", "NPUWorker.sleep"))
    assert "if level == 2:" in body and "model.named_buffers()" in body
    assert "allocator.sleep(offload_tags=('weights',) if level == 1 else tuple())" in body


def test_a_plain_tensor_of_the_dispatcher_dies_in_deep_sleep_and_is_this_formula() -> None:
    dispatcher = node(ASCEND, "vllm_ascend.ops.fused_moe.token_dispatcher", "TokenDispatcherWithAll2AllV")
    body = wheels.source(dispatcher)
    assert "expert_ids_per_ep_rank" in wheels.attributes(dispatcher) and "register_buffer" not in body
    assert "[i % self.num_local_experts for i in range(self.num_experts)], dtype=torch.int32" in body
    assert "if self.num_local_experts > 1" in body


def test_absorbed_attention_weights_are_recomputed_in_place_by_the_second_processing() -> None:
    module = wheels.tree(ASCEND, "vllm_ascend.attention.mla_v1")
    body = wheels.source(node(ASCEND, "vllm_ascend.attention.mla_v1", "AscendMLAImpl.process_weights_after_loading"))
    assert module is not None and "if not hasattr(self, 'W_UV'):" in body
    assert "self.W_UV.copy_(" in body and "self.W_UK_T.copy_(" in body and "self.kv_b_proj.weight.data" in body


def test_the_sleeping_allocator_refuses_expandable_segments() -> None:
    init = node(ASCEND, "vllm_ascend.device_allocator.camem", "CaMemAllocator.__init__")
    refused = [
        n for n in ast.walk(init) if isinstance(n, ast.Assert) and "expandable_segments:True" in wheels.source(n.test)
    ]
    assert len(refused) == 1 and "not in conf" in wheels.source(refused[0].test)


def test_where_graphs_are_recorded_and_where_not() -> None:
    """`npu.graph_mode`, and the default in launch/env-a3.sh."""
    use = wheels.source(node(ASCEND, "vllm_ascend.worker.model_runner_v1", "NPUModelRunner._use_aclgraph"))
    assert "self.compilation_config.mode == CompilationMode.VLLM_COMPILE" in use
    assert "os.environ.get('ASCEND_LAUNCH_BLOCKING', '0') == '1'" in wheels.source(
        wheels.tree(ASCEND, "vllm_ascend.platform")
    )
    library = wheels.wheel(TORCH).read("torch_npu/lib/libtorch_npu.so")
    assert b"Do not support TASK_QUEUE_ENABLE = 2 during NPU graph capture" in library
    assert "set_default TASK_QUEUE_ENABLE 1 " in (ROOT / "launch" / "env-a3.sh").read_text(encoding="utf-8")


def test_the_expert_dispatch_takes_the_largest_recorded_batch() -> None:
    """As the plan counts its buffers (`communicators.mc2_buffer`): graph_sizes ends with max_num_seqs. vllm-ascend's
    own sizes may end below it; larger decoding batches would then go the way of prefills, which is not recorded."""
    body = wheels.source(node(ASCEND, "vllm_ascend.ascend_forward_context", "set_mc2_tokens_capacity"))
    assert "max_num_tokens = vllm_config.compilation_config.max_cudagraph_capture_size" in body


def test_a_groups_buffer_size_is_an_option_of_its_communicator() -> None:
    """`device.group_options`. The class is compiled: torch_npu's own Python code shows its name, the library the
    options'."""
    made = wheels.source(node(TORCH, "torch_npu._init.registry.distributed", "_new_process_group_hccl_helper"))
    assert "torch_npu._C._distributed_c10d.ProcessGroupHCCL.Options()" in made
    library = wheels.wheel(TORCH).read("torch_npu/lib/libtorch_npu.so")
    assert b"\0hccl_config\0" in library and b"\0hccl_buffer_size\0" in library
    assert b"Value type of hccl_buffer_size should be int." in library


def test_worker_has_no_reload_so_weights_go_through_load_weights() -> None:
    assert wheels.find(node(ASCEND, "vllm_ascend.worker.worker", "NPUWorker"), "reload_weights") is None


def test_the_sampler_calls_our_logits_processor_for_greedy_requests_and_reports_the_logits_before_it() -> None:
    """`rollout.draw`: vllm-ascend's sampler inherits these functions of vLLM and replaces neither."""
    ascend = node(ASCEND, "vllm_ascend.sample.sampler", "AscendSampler")
    assert [wheels.source(base) for base in ascend.bases] == ["Sampler"]
    assert not {"forward", "sample", "apply_logits_processors"} & {n.name for n in ascend.body if hasattr(n, "name")}
    forward = wheels.source(node(VLLM, "vllm.v1.sample.sampler", "Sampler.forward"))
    raw, processed = forward.index("raw_logprobs = logits.clone()"), forward.index("self.apply_logits_processors(")
    assert raw < processed < forward.index("self.sample(")
    assert "logits = logits.to(torch.float32)" in forward, "the same tensor, with the sums that the model keeps with it"
    applied = wheels.source(node(VLLM, "vllm.v1.sample.sampler", "Sampler.apply_logits_processors"))
    assert "for processor in sampling_metadata.logitsprocs.non_argmax_invariant" in applied
    sample = wheels.source(node(VLLM, "vllm.v1.sample.sampler", "Sampler.sample"))
    assert sample.index("self.greedy_sample(logits)") < sample.index("if sampling_metadata.all_greedy")
    runner = wheels.source(wheels.tree(ASCEND, "vllm_ascend.worker.model_runner_v1"))
    assert "logitsprocs=build_logitsprocs(" in runner and "self.vllm_config.model_config.logits_processors" in runner


def test_an_npu_has_no_double_precision() -> None:
    """`draw.SINGLE_PRECISION`: torch_npu replaces double by float."""
    library = wheels.wheel(TORCH).read("torch_npu/lib/libtorch_npu.so")
    assert b"Device do not support double dtype now, dtype cast replace with float." in library
    assert b"[Cumsum] Dtype Double will be replaced with Float!" in library


def test_replicas_are_the_outermost_axis_of_the_world() -> None:
    body = wheels.source(node(VLLM, "vllm.distributed.parallel_state", "initialize_model_parallel"))
    assert re.search(
        r"all_ranks = torch\.arange\(world_size\)\.reshape\(-1, data_parallel_size, pipeline_model_parallel_size, "
        r"prefill_context_model_parallel_size, tensor_model_parallel_size\)",
        body,
    )


def test_data_parallel_settings_come_from_the_environment_when_the_argument_is_one() -> None:
    """data_parallel_size=32 fails on ranks of the second replica; VLLM_DP_* does not look at the world's size."""
    body = wheels.source(node(VLLM, "vllm.config.parallel", "ParallelConfig"))
    assert (
        "int(os.environ['RANK']) //" in body and "if not 0 <= self.data_parallel_rank < self.data_parallel_size" in body
    )
    for name in ("data_parallel_size = envs.VLLM_DP_SIZE", "data_parallel_rank = envs.VLLM_DP_RANK"):
        assert name in body


def test_external_launcher_reads_rank_and_wants_one_process() -> None:
    cls = wheels.source(node(VLLM, "vllm.v1.executor.uniproc_executor", "ExecutorWithExternalLauncher"))
    assert "assert not envs.VLLM_ENABLE_V1_MULTIPROCESSING" in cls
    assert "os.environ['RANK']" in cls and "os.environ['LOCAL_RANK']" in cls


def test_fused_parameters_have_the_parts_that_the_reshard_writes() -> None:
    text = wheels.source(wheels.tree(VLLM, "vllm.model_executor.models.deepseek_v2"))
    for part in (
        "('gate_up_proj', 'gate_proj', 0)",
        "('gate_up_proj', 'up_proj', 1)",
        "('fused_qkv_a_proj', 'q_a_proj', 0)",
        "('fused_qkv_a_proj', 'kv_a_proj_with_mqa', 1)",
    ):
        assert part in text
    qwen = wheels.source(wheels.tree(VLLM, "vllm.model_executor.models.qwen2"))
    for part in ("('qkv_proj', 'q_proj', 'q')", "('qkv_proj', 'k_proj', 'k')", "('qkv_proj', 'v_proj', 'v')"):
        assert part in qwen


LOADERS = [
    ("vllm.model_executor.layers.linear", "ReplicatedLinear.weight_loader"),
    ("vllm.model_executor.layers.linear", "ColumnParallelLinear.weight_loader"),
    ("vllm.model_executor.layers.linear", "MergedColumnParallelLinear.weight_loader"),
    ("vllm.model_executor.layers.linear", "QKVParallelLinear.weight_loader"),
    ("vllm.model_executor.layers.linear", "RowParallelLinear.weight_loader"),
    ("vllm.model_executor.parameter", "_ColumnvLLMParameter.load_column_parallel_weight"),
    ("vllm.model_executor.parameter", "_ColumnvLLMParameter.load_merged_column_weight"),
    ("vllm.model_executor.parameter", "_ColumnvLLMParameter.load_qkv_weight"),
    ("vllm.model_executor.parameter", "RowvLLMParameter.load_row_parallel_weight"),
    ("vllm.model_executor.layers.vocab_parallel_embedding", "VocabParallelEmbedding.weight_loader"),
    ("vllm.model_executor.layers.fused_moe.layer", "FusedMoE._load_w13"),
    ("vllm.model_executor.layers.fused_moe.layer", "FusedMoE._load_w2"),
    ("vllm.model_executor.model_loader.weight_utils", "default_weight_loader"),
]


@pytest.mark.parametrize("module, qualname", LOADERS, ids=[name for _, name in LOADERS])
def test_loaders_copy_a_cut_of_what_they_are_given(module: str, qualname: str) -> None:
    """Places are learnt from these copies (rollout/places.py); a loader that casts or turns first would send its
    weights another way."""
    body = wheels.source(node(VLLM, module, qualname))
    assert re.search(r"\.copy_\(loaded_weight(\.view\(param\.shape\))?\)", body)
    before = body.partition(".copy_(")[0]
    assert (
        ".to(" not in before and ".contiguous(" not in before and ".t()" not in before and ".transpose(" not in before
    )


def test_processing_keeps_linear_weights_in_plain_format_where_they_are() -> None:
    """`maybe_trans_nz` gives back what it got where both switches are 0 (launch/env-a3.sh, additional_config)."""
    body = wheels.source(
        node(ASCEND, "vllm_ascend.ops.linear", "AscendUnquantizedLinearMethod.process_weights_after_loading")
    )
    assert "layer.weight.data = maybe_trans_nz(layer.weight.data)" in body and "clone" not in body
    keep = wheels.source(node(ASCEND, "vllm_ascend.utils", "maybe_trans_nz"))
    assert keep.index("return weight") < keep.index("npu_format_cast")


def test_groups_of_experts_are_scored_by_their_two_best_experts() -> None:
    """Whatever the score function is. engine_limits therefore refuses DeepSeek-V2 with a choice of groups."""
    body = wheels.source(node(ASCEND, "vllm_ascend.ops.fused_moe.experts_selector", "_select_experts_with_fusion_ops"))
    assert body.count("group_select_mode=1") == 2 and "norm_type = 0 if scoring_func == 'softmax' else 1" in body


def test_buffers_of_groups_are_set_as_vllm_ascend_sets_its_own() -> None:
    from r1zero.plan import communicators

    body = wheels.source(node(ASCEND, "vllm_ascend.utils", "create_hccl_pg_options"))
    assert (
        "torch_npu._C._distributed_c10d.ProcessGroupHCCL.Options()" in body
        and "options.hccl_config = hccl_config" in body
    )
    assert f"_DEFAULT_BUFFER_SIZE = {communicators.ENGINE_MB}" in wheels.source(
        wheels.tree(ASCEND, "vllm_ascend.utils")
    )
    assert "if group_name and 'mc2' in group_name:\n        return None" in wheels.source(
        node(ASCEND, "vllm_ascend.utils", "get_hccl_config_for_pg_options")
    )


def test_shared_experts_are_cut_by_tensor_rank_on_npu_and_whole_elsewhere() -> None:
    """vLLM keeps them whole where it cuts tokens instead; vllm-ascend switches that off by naming another
    all-to-all."""
    rule = wheels.source(node(VLLM, "vllm.config.parallel", "ParallelConfig.use_sequence_parallel_moe"))
    assert "flashinfer_all2allv" not in rule and "'allgather_reducescatter'" in rule
    assert rule.endswith(
        "and self.enable_expert_parallel and (self.tensor_parallel_size > 1) and (self.data_parallel_size > 1)"
    )
    assert "disable_tp=is_sequence_parallel" in wheels.source(
        node(VLLM, "vllm.model_executor.models.deepseek_v2", "DeepseekV2MLP")
    )
    platform = wheels.source(wheels.tree(ASCEND, "vllm_ascend.platform"))
    assert (
        "if not vllm_config.compilation_config.pass_config.enable_sp:\n                "
        "parallel_config.all2all_backend = 'flashinfer_all2allv'"
    ) in platform


# What our own modules name: found by walking them, so that the tables above cannot fall behind the code.

CPU_ONLY = re.compile(r"\bcpu\b|cpu_", re.IGNORECASE)
"""Modules of vLLM that only the CPU row touches, in version 0.32; they need not exist in 0.23."""


def engine_sources() -> list[Path]:
    rollout = sorted((ROOT / "r1zero" / "rollout").glob("*.py"))
    return [
        path for path in (*rollout, ROOT / "r1zero" / "device.py") if path.exists() and not CPU_ONLY.search(path.stem)
    ]


def test_every_module_that_the_engine_imports_exists_in_the_version_that_npus_run() -> None:
    wrong = []
    for path in engine_sources():
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(n, ast.ImportFrom)
                and (n.module or "").split(".")[0] in ("vllm", "vllm_ascend")
                and not CPU_ONLY.search(n.module)
            ):
                wheel = ASCEND if n.module.startswith("vllm_ascend") else VLLM
                module = wheels.tree(wheel, n.module)
                for alias in n.names:
                    lazy = module is not None and alias.name in wheels.strings(
                        module
                    )  # vllm/__init__ resolves names lazily
                    inside = module is not None and (wheels.find(module, alias.name) is not None or lazy)
                    if not inside and wheels.tree(wheel, f"{n.module}.{alias.name}") is None:
                        wrong.append(f"{path.name}:{n.lineno} {n.module}.{alias.name}")
    assert not wrong


def test_every_keyword_given_to_llm_and_sampling_params_is_in_the_tables() -> None:
    allowed = {"LLM": set(ENGINE_ARGS), "SamplingParams": set(SAMPLING)}
    wrong = [
        f"{path.name}:{n.lineno} {n.func.id}({k.arg})"
        for path in engine_sources()
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in allowed
        for k in n.keywords
        if k.arg and k.arg not in allowed[n.func.id]
    ]
    assert not wrong, "add to ENGINE_ARGS or SAMPLING, where they are checked against the wheel"


def test_every_argument_that_the_engine_collects_for_llm_is_in_the_tables() -> None:
    """The arguments of LLM are gathered in dict literals: those of every device, and those of NPUs."""
    engine, npu = (
        ast.parse((ROOT / "r1zero" / "rollout" / name).read_text(encoding="utf-8"))
        for name in ("arguments.py", "npu.py")
    )
    constant, experts = (wheels.find(npu, name).value for name in ("ARGUMENTS", "RETURN_EXPERTS"))
    functions = [wheels.find(engine, "engine_arguments"), wheels.find(npu, "arguments")]
    returned = [n.value for function in functions for n in ast.walk(function) if isinstance(n, ast.Return)]
    names = {key.value for table in (constant, experts, *returned) for key in table.keys}
    assert len(names) > 15 and names <= set(ENGINE_ARGS), names - set(ENGINE_ARGS)
    assert "enable_sleep_mode" in names
    config = wheels.source(node(ASCEND, "vllm_ascend.ascend_config", "AscendConfig"))
    assert all(f"'{name}'" in config for name in ast.literal_eval(constant)["additional_config"])


def test_every_vllm_variable_that_we_name_is_in_the_tables() -> None:
    known = {name for _, names in ENVIRONMENT.values() for name in names.split()}
    named = {
        text
        for path in engine_sources()
        for text in wheels.strings(ast.parse(path.read_text(encoding="utf-8")))
        if re.fullmatch(r"VLLM_[A-Z0-9_]+", text) and not text.startswith("VLLM_CPU")
    }
    assert named <= known, "add to ENVIRONMENT, where they are checked against the wheel"

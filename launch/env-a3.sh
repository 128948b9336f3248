# Environment of a run on Atlas 900 A3, sourced by mpirun.sh, torchrun.sh and slurm.sh when RUN_ENV=launch/env-a3.sh.
# Each line may be overridden by setting the variable before. The Python side sets what no user needs to choose
# (r1zero/distributed/device.py); what stands here belongs to a machine or must be there before the interpreter starts.

set_default() { [ -n "${!1+set}" ] || export "$1=$2"; }

# CANN and its operator libraries (kernels for the model, ATB for vLLM).
if [ -f "${ASCEND_TOOLKIT_HOME:-/usr/local/Ascend/ascend-toolkit}/set_env.sh" ]; then
    source "${ASCEND_TOOLKIT_HOME:-/usr/local/Ascend/ascend-toolkit}/set_env.sh"
    source "${ATB_SET_ENV:-/usr/local/Ascend/nnal/atb/set_env.sh}"
fi

# Communication
export HCCL_BUFFSIZE=256                    # MiB of each of a communicator's two buffers. The engine's fused dispatch needs 240 for 32 tokens a
                                            #   rank (`--plan` says); every communicator pays, so not more
set_default HCCL_CONNECT_TIMEOUT 1800       # s to open a communicator: its first use comes after a phase of uneven length (default 120)
set_default HCCL_EXEC_TIMEOUT 3600          # s a collective waits for the last rank: longer than a checkpoint or an uneven rollout (default 1836)
set_default HCCL_EVENT_TIMEOUT 3700         # s; must exceed HCCL_EXEC_TIMEOUT, or the wrong error comes first
set_default ACL_DEVICE_SYNC_TIMEOUT 3800    # s; likewise
set_default HCCL_IF_BASE_PORT 60000         # 16 ports from here on each node; keep them out of net.ipv4.ip_local_port_range
set_default HCCL_OP_EXPANSION_MODE AIV      # collectives are started by the vector cores: short messages of decoding cost less
set_default HCCL_WHITELIST_DISABLE 1        # no file of allowed hosts
set_default CUDA_DEVICE_MAX_CONNECTIONS 1   # megatron-core asserts it where tensor parallel communication overlaps

# Memory. No expandable segments: vLLM's sleeping allocator refuses them.
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:False
set_default MULTI_STREAM_MEMORY_REUSE 1     # blocks freed on one stream serve another

# Speed
set_default TASK_QUEUE_ENABLE 2             # operators are queued in two stages; ASCEND_LAUNCH_BLOCKING=1 undoes it for debugging
set_default CPU_AFFINITY_CONF 1             # torch_npu binds its threads near the die (hence --bind-to none for mpirun)
set_default OMP_NUM_THREADS 8               # threads of host operators a rank: the streamed load's dequantisation
set_default OMP_PROC_BIND false

# vLLM-Ascend: bf16 weights that are rewritten every iteration must keep the plain format.
export VLLM_ASCEND_ENABLE_NZ=0              # waking raises otherwise
export VLLM_ASCEND_ENABLE_FUSED_MC2=0       # forces that format
export VLLM_ASCEND_ENABLE_FLASHCOMM1=0
export VLLM_ASCEND_BALANCE_SCHEDULING=0
export DYNAMIC_EPLB=false                   # experts stay where the reshard sends them

ulimit -n 65536 2>/dev/null || true         # sockets and files of 384 ranks

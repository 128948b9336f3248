# Environment of a run on Atlas 900 A3, sourced by mpirun.sh, torchrun.sh and slurm.sh when RUN_ENV=launch/env-a3.sh.
# Set a variable beforehand to override a line with `set_default`; lines with `export` are always set, because another
# value fails or gives wrong results. Variables that nobody needs to choose are set in r1zero/distributed/device.py. This
# file has those that depend on the machine, or must be set before the interpreter starts.

set_default() { [ -n "${!1+set}" ] || export "$1=$2"; }

# CANN and its operator libraries (kernels for the model, ATB for vLLM).
if [ -f "${ASCEND_TOOLKIT_HOME:-/usr/local/Ascend/ascend-toolkit}/set_env.sh" ]; then
    source "${ASCEND_TOOLKIT_HOME:-/usr/local/Ascend/ascend-toolkit}/set_env.sh"
    source "${ATB_SET_ENV:-/usr/local/Ascend/nnal/atb/set_env.sh}"
fi

# Communication
export HCCL_BUFFSIZE=256                    # MiB of each of the two buffers of a communicator. The engine's fused dispatch
                                            #   needs 240 for 32 tokens per rank (`--plan` calculates it). Every communicator
                                            #   takes this memory, so do not set it higher than needed
set_default HCCL_CONNECT_TIMEOUT 1800       # seconds to open a communicator: ranks arrive after a phase of uneven length (default 120)
set_default HCCL_EXEC_TIMEOUT 3600          # seconds that a collective waits for the last rank: longer than a checkpoint or an uneven
                                            #   rollout (default 1836)
set_default HCCL_EVENT_TIMEOUT 3700         # seconds; must exceed HCCL_EXEC_TIMEOUT, or another error comes before its message
set_default ACL_DEVICE_SYNC_TIMEOUT 3800    # seconds; must exceed HCCL_EVENT_TIMEOUT for the same reason
set_default HCCL_IF_BASE_PORT 60000         # 16 ports from here are used on each node, which must lie outside
                                            #   net.ipv4.ip_local_port_range
set_default HCCL_OP_EXPANSION_MODE AIV      # the vector cores start collectives, which makes the short messages of decoding cheaper
set_default HCCL_WHITELIST_DISABLE 1        # use no file of allowed hosts
set_default CUDA_DEVICE_MAX_CONNECTIONS 1   # megatron-core asserts this value if tensor-parallel communication overlaps

# Memory. vLLM-Ascend's allocator for sleep mode refuses expandable segments.
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:False
set_default MULTI_STREAM_MEMORY_REUSE 1     # a block that was freed on one stream can be used on another

# Speed
set_default TASK_QUEUE_ENABLE 1             # two-stage queue of operators; with 2, torch_npu records no graphs. Tracebacks show a later
                                            #   line than the one at fault; for debugging set ASCEND_LAUNCH_BLOCKING=1, with
                                            #   rollout.graph=false
set_default CPU_AFFINITY_CONF 1             # torch_npu binds its threads near the die; launch/mpirun.sh therefore binds nothing
set_default OMP_NUM_THREADS 8               # threads per rank of operators on the host, such as dequantisation while loading
set_default OMP_PROC_BIND false             # OpenMP binds no threads, for the same reason

# vLLM-Ascend. bf16 weights that are written again in every iteration must keep the plain (ND) format.
export VLLM_ASCEND_ENABLE_NZ=0              # with NZ format, waking the engine raises an error
export VLLM_ASCEND_ENABLE_FUSED_MC2=0       # fused MC2 forces the NZ format
export VLLM_ASCEND_ENABLE_FLASHCOMM1=0
export VLLM_ASCEND_BALANCE_SCHEDULING=0
export DYNAMIC_EPLB=false                   # experts must stay where the weight synchronisation sends them

ulimit -n 65536 2>/dev/null || true         # open files: sockets and files for 384 ranks

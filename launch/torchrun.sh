#!/usr/bin/env bash
# One torchrun job, started on every node: launch/torchrun.sh RANKS_PER_NODE CONFIG [section.key=value ...]
#   launch/torchrun.sh 2 configs/cpu.toml
#   on node N of 24: NODES=24 NODE_RANK=N MASTER_ADDR=node00 RUN_ENV=launch/env-a3.sh launch/torchrun.sh 16 configs/a3.toml
# RUN_ENV: a file of exports. IFNAME: network interface between nodes.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
per_node=$1; shift
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
[ -z "${RUN_ENV:-}" ] || source "$RUN_ENV"
nodes=${NODES:-1}
meet=(--standalone)
if [ "$nodes" -gt 1 ]; then
    : "${NODE_RANK:?set NODE_RANK to the number of this node, 0 to $((nodes - 1))}" "${MASTER_ADDR:?set MASTER_ADDR to the first node}"
    # Static ranks: a rendezvous may number the nodes as they arrive, and a pipeline stage must be neighbouring nodes.
    meet=(--nnodes "$nodes" --node-rank "$NODE_RANK" --rdzv-backend static --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
fi
[ -z "${IFNAME:-}" ] || export GLOO_SOCKET_IFNAME=$IFNAME HCCL_SOCKET_IFNAME=$IFNAME TP_SOCKET_IFNAME=$IFNAME NCCL_SOCKET_IFNAME=$IFNAME
exec torchrun "${meet[@]}" --nproc-per-node "$per_node" --max-restarts 0 "${TRAIN:-train.py}" "$@"

#!/usr/bin/env bash
# One torchrun job. Start this on every node: launch/torchrun.sh [--retries N] RANKS_PER_NODE CONFIG [section.key=value ...]
#   launch/torchrun.sh 2 configs/cpu.toml
#   on node N of 24: NODES=24 NODE_RANK=N MASTER_ADDR=node00 RUN_ENV=launch/env-a3.sh launch/torchrun.sh 16 configs/a3.toml
# RUN_ENV: a file of exports, which is sourced here. IFNAME: the network interface between nodes.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/job.sh
per_node=$1; shift
nodes=${NODES:-1}
meet=(--standalone)
if [ "$nodes" -gt 1 ]; then
    : "${NODE_RANK:?set NODE_RANK to the number of this node, 0 to $((nodes - 1))}" "${MASTER_ADDR:?set MASTER_ADDR to the first node}"
    if [ "$NODE_RANK" -eq 0 ] && ! python -c "import socket; socket.create_server(('', ${MASTER_PORT:-29500}))" 2>/dev/null; then
        echo "port ${MASTER_PORT:-29500} of $(hostname), where the ranks are to meet, is taken; set MASTER_PORT to a free one on every node" >&2
        exit 2
    fi
    # The static backend numbers nodes by NODE_RANK; others may use the order of arrival. The nodes of a stage must be neighbours.
    meet=(--nnodes "$nodes" --node-rank "$NODE_RANK" --rdzv-backend static --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
fi
# torchrun does the retries itself, because all nodes must restart together. It also retries after status 2.
restarts=$retries retries=0
run children torchrun "${meet[@]}" --nproc-per-node "$per_node" --max-restarts "$restarts" "${TRAIN:-train.py}" "$@"

#!/usr/bin/env bash
# One MPI job: launch/mpirun.sh RANKS CONFIG [section.key=value ...]
#   launch/mpirun.sh 2 configs/cpu.toml
#   HOSTFILE=hosts RUN_ENV=launch/env-a3.sh launch/mpirun.sh 384 configs/a3.toml
# HOSTFILE: one node a line, in the order of ranks, such as "node01 slots=16". Without it all ranks run here.
# RUN_ENV: a file of exports, sourced here and carried to every rank. IFNAME: network interface between nodes.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
ranks=$1; shift
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
[ -z "${RUN_ENV:-}" ] || source "$RUN_ENV"
[ "$(id -u)" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1   # containers run as root
placement=(--oversubscribe)
if [ -n "${HOSTFILE:-}" ]; then
    # Ranks of a tensor group are neighbours, and a pipeline stage is whole nodes: fill node after node.
    placement=(--hostfile "$HOSTFILE" --map-by "ppr:${RANKS_PER_NODE:-16}:node" --wdir "$PWD")
fi
[ -z "${IFNAME:-}" ] || export GLOO_SOCKET_IFNAME=$IFNAME HCCL_SOCKET_IFNAME=$IFNAME TP_SOCKET_IFNAME=$IFNAME NCCL_SOCKET_IFNAME=$IFNAME
# Each rank gets this shell's exports, but not what belongs to one host or to MPI itself.
exports=()
for name in $(compgen -e | grep -Ev '^(OMPI_|PMIX_|PRTE_|SLURM_|HOSTNAME$|HOME$|USER$|LOGNAME$|SHELL$|SHLVL$|TERM$|TMPDIR$|PWD$|OLDPWD$|_$|DISPLAY$|SSH_|XDG_)'); do
    exports+=(-x "$name")
done
# --bind-to none: Open MPI's binding would pin a rank's graders and torch_npu's threads to one core.
exec mpirun -np "$ranks" "${placement[@]}" --bind-to none "${exports[@]}" ${MPIRUN_ARGS:-} python "${TRAIN:-train.py}" "$@"

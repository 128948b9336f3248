#!/usr/bin/env bash
# One MPI job: launch/mpirun.sh [--retries N] RANKS CONFIG [section.key=value ...]
#   launch/mpirun.sh 2 configs/cpu.toml
#   HOSTFILE=hosts RUN_ENV=launch/env-a3.sh launch/mpirun.sh 384 configs/a3.toml
# HOSTFILE: one node per line, in the order of ranks, such as "node01 slots=16". Without it all ranks run on this machine.
# RUN_ENV: a file of exports, which is sourced here and passed to every rank. IFNAME: the network interface between nodes.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/job.sh
ranks=$1; shift
[ "$(id -u)" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1   # root is usual in containers
placement=(--oversubscribe)
if [ -n "${HOSTFILE:-}" ]; then
    # Fill node after node: tensor groups need neighbouring ranks, and pipeline stages whole nodes.
    placement=(--hostfile "$HOSTFILE" --map-by "ppr:${RANKS_PER_NODE:-16}:node" --wdir "$PWD")
fi
# Each rank gets the exported variables of this shell, except those that belong to one host or to MPI itself.
exports=()
for name in $(compgen -e | grep -Ev '^(OMPI_|PMIX_|PRTE_|SLURM_|HOSTNAME$|HOME$|USER$|LOGNAME$|SHELL$|SHLVL$|TERM$|TMPDIR$|PWD$|OLDPWD$|_$|DISPLAY$|SSH_|XDG_)'); do
    exports+=(-x "$name")
done
# --bind-to none: otherwise Open MPI binds the grading processes of a rank and torch_npu's threads to one core.
run self mpirun -np "$ranks" "${placement[@]}" --bind-to none "${exports[@]}" ${MPIRUN_ARGS:-} python "${TRAIN:-train.py}" "$@"

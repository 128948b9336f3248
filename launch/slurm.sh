#!/usr/bin/env bash
#SBATCH --job-name=r1zero
#SBATCH --nodes=24
#SBATCH --ntasks-per-node=16
#SBATCH --exclusive
#SBATCH --output=runs/slurm-%j.log
# One Slurm job: sbatch launch/slurm.sh CONFIG [section.key=value ...]     (sbatch options before the script override the ones above)
#   RUN_ENV=launch/env-a3.sh sbatch launch/slurm.sh configs/a3.toml
# Submit in the repository. RUN_ENV: a file of exports. IFNAME: the network interface. To save and end: scancel --signal=USR1 JOBID.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the repository}"
[ $# -ge 1 ] || { sed -n '7,9s/^# //p' "$0" >&2; exit 2; }
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
[ -z "${RUN_ENV:-}" ] || source "$RUN_ENV"
[ -z "${IFNAME:-}" ] || export GLOO_SOCKET_IFNAME=$IFNAME HCCL_SOCKET_IFNAME=$IFNAME TP_SOCKET_IFNAME=$IFNAME NCCL_SOCKET_IFNAME=$IFNAME
# --mpi=none: under srun the ranks meet without MPI, and a default of pmi2 or pmix would set the variables of another launcher.
# Block distribution fills node after node. If one rank fails, all end. No binding: graders and torch_npu place their own threads.
exec srun --mpi=none --distribution=block:block --cpu-bind=none --kill-on-bad-exit=1 --export=ALL python "${TRAIN:-train.py}" "$@"

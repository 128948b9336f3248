#!/usr/bin/env bash
# A miniature R1-Zero on two cores: install, make a base model and its problems, train it, and show one problem before and after.
# Running this again keeps what exists and continues the run. To start over: rm -rf runs/quickstart
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/install.sh
run=runs/quickstart

if [ ! -f "$run/base/config.json" ]; then
    say "1/5 Making a base model that rarely shows its reasoning, and its problems (about three minutes) ..."
    python -m r1zero.miniature --threads 1 make "$run"   # for this small model one thread is faster than two
fi
say "2/5 Problems to tokens ..."
python preprocess.py configs/data/quickstart.toml
say "3/5 Hugging Face weights to a megatron checkpoint ..."
[ -d "$run/mcore" ] || python convert.py to-mcore configs/cpu.toml "$run/mcore"
say "4/5 60 iterations of GRPO on two ranks: megatron-core trains, vLLM generates ..."
mpirun -np 2 python train.py configs/cpu.toml "$@"
say "5/5 Back to Hugging Face's format, and one problem before and after ..."
newest=$(cat "$run/checkpoints/latest")
rm -rf "$run/hf" && python convert.py to-hf configs/cpu.toml "$run/checkpoints/$newest" "$run/hf"
python -m r1zero.miniature show "$run/base" "$run/hf" "$run/problems/heldout.jsonl"
say "Curves: $run/reward.png and $run/response_length.png. More: tensorboard --logdir runs"

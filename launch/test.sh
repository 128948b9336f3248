#!/usr/bin/env bash
# Install if needed and run the tests, two at a time. --fast leaves out the slow tests, --all adds the long ones. Other arguments go
# to pytest; -n 0 runs one test at a time in one process, with its output and debugger.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/install.sh
export OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1
chosen="not long"
case "${1:-}" in
    --fast) chosen="not slow and not long"; shift ;;
    --all) chosen=""; shift ;;
esac
exec python -m pytest tests -m "$chosen" -n 2 --dist worksteal "$@"

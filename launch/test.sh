#!/usr/bin/env bash
# Install if needed and run all tests; --fast leaves out the slow ones. Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/install.sh
export OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1
if [ "${1:-}" = --fast ]; then
    shift
    set -- -m "not slow" "$@"
fi
exec python -m pytest tests "$@"

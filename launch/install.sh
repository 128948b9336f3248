#!/usr/bin/env bash
# Create .venv from requirements.txt, unless it exists and was made from the same files. A .venv that something else made, such as the
# one for NPUs or CUDA cards, is refused. Other scripts source this file; it also runs alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Print in bold if the output is a terminal and NO_COLOR is not set.
say() { if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then printf '\033[1m%s\033[0m\n' "$*"; else printf '%s\n' "$*"; fi; }
die() { printf '%s\n' "$*" >&2; exit 1; }

# Print the path of the first Python from 3.11 to 3.13. PYTHON=... chooses another.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3.11 python3.13 python3}; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "No Python 3.11, 3.12 or 3.13 with venv was found. On Debian or Ubuntu: apt-get install python3 python3-venv; or name one: PYTHON=/path/to/python3.11"
}

install() {
    local stamp=.venv/.installed want python index=()
    want=$(cat requirements.txt launch/install.sh | sha256sum)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
        return
    fi
    if [ -e .venv ] && [ ! -e "$stamp" ] && [ ! -e .venv/.installing ]; then
        die "$PWD/.venv was not made by launch/install.sh, which would replace it by the CPU environment. Use that environment without this script (python -m pytest tests, python train.py CONFIG), or remove it: rm -r .venv"
    fi
    python=$(find_python)
    command -v cc >/dev/null || command -v gcc >/dev/null || die "No C compiler was found. On Debian or Ubuntu: apt-get install build-essential"
    say "Installing into .venv with $($python --version) (a few minutes, 3 GB) ..."
    rm -rf .venv && mkdir .venv && touch .venv/.installing && "$python" -m venv .venv
    # The CPU build of torch has its own index, which is used only if the configured indexes do not have the build.
    if ! .venv/bin/pip download -qq --no-deps -d .venv/torch "$(grep ^torch== requirements.txt)" 2>/dev/null; then
        index=(--extra-index-url https://download.pytorch.org/whl/cpu)
    fi
    .venv/bin/pip install -qq --no-deps --no-compile --find-links .venv/torch "${index[@]}" -r requirements.txt || die "The installation failed; see pip's message above, correct the cause and run this again."
    rm -rf .venv/torch
    # Compile on all cores, as pip uses only one. A few files are written for another Python and cannot be compiled.
    .venv/bin/python -m compileall -qq -j 0 .venv/lib || true
    printf '%s\n' "$want" > "$stamp" && rm .venv/.installing
    say "Installed."
}

install
export PATH="$PWD/.venv/bin:$PATH"
# By default Open MPI refuses to start as root, and to start more ranks than there are cores.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export PYTHONUNBUFFERED=1

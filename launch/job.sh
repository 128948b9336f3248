# Sourced by mpirun.sh and torchrun.sh: what both need before they start, and how the job is run to its end.
#   --retries N, before the other arguments: a job that failed is started again up to N times and continues from its last
#   checkpoint. Not after success, after an error that the user must mend (exit status 2), or where it was asked to end.
#   SIGTERM, SIGUSR1 or a first Ctrl-C to the script: the step is finished and saved; a second Ctrl-C ends the job at once.
retries=0
if [ "${1:-}" = --retries ]; then
    retries=${2:-}
    [[ $retries =~ ^[0-9]+$ ]] || { echo "--retries $retries: name the number of times that a failed job is started again" >&2; exit 2; }
    shift 2
fi
[ $# -ge 2 ] || { sed -n '2,/^set /s/^# //p' "$0" >&2; exit 2; }
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
[ -z "${RUN_ENV:-}" ] || source "$RUN_ENV"
[ -z "${IFNAME:-}" ] || export GLOO_SOCKET_IFNAME=$IFNAME HCCL_SOCKET_IFNAME=$IFNAME TP_SOCKET_IFNAME=$IFNAME NCCL_SOCKET_IFNAME=$IFNAME

# run TARGETS COMMAND ...: TARGETS "self" or "children" says whom SIGUSR1 has to reach, the launcher (mpirun forwards it) or its ranks.
run() {
    local targets=$1 status; shift
    asked=0
    trap "ask $targets" TERM USR1 HUP
    trap "ask $targets now" INT
    while true; do
        set -m   # a process group of its own: the terminal's Ctrl-C comes here only
        "$@" </dev/null &
        job=$!
        set +m
        while kill -0 "$job" 2>/dev/null; do wait "$job" || true; done   # a signal ends a wait early
        status=0; wait "$job" || status=$?
        if [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || [ "$asked" -gt 0 ] || [ "$retries" -eq 0 ]; then exit "$status"; fi
        retries=$((retries - 1))
        echo "the job ended with status $status and is started again; retries left after this one: $retries" >&2
    done
}

ask() {
    local who=$job
    [ "$1" = self ] || who=$(cat /proc/"$job"/task/*/children)
    if [ "$asked" -gt 0 ] && [ "${2:-}" = now ]; then
        [ "$1" = self ] || kill -INT $who
        kill -TERM "$job"
    else
        kill -USR1 $who
    fi
    asked=1
}

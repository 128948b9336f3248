# Sourced by launch/mpirun.sh and launch/torchrun.sh: common set-up, and how a job is run to its end.
#   --retries N, before the other arguments: a failed job is started again up to N times and continues from its last
#   checkpoint. It is not started again after an error that the user must correct (exit status 2), or if it was asked to
#   end.
#   SIGTERM, SIGUSR1, SIGHUP or a first Ctrl-C to the script: the step is finished and saved, then the job ends. A second
#   Ctrl-C ends the job at once.
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

# run TARGET COMMAND ...: start the command and wait for its end. TARGET says who gets SIGUSR1: "self" is the launcher
# (mpirun forwards it to the ranks), "children" are the launcher's child processes (the ranks of torchrun).
run() {
    local targets=$1 status; shift
    asked=0
    trap "ask $targets" TERM USR1 HUP
    trap "ask $targets now" INT
    while true; do
        set -m   # the job gets its own process group, so that Ctrl-C reaches only this script
        "$@" </dev/null &
        job=$!
        set +m
        while kill -0 "$job" 2>/dev/null; do wait "$job" || true; done   # a signal interrupts wait
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

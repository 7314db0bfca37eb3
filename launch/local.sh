#!/usr/bin/env bash
# Runs a command of mae_pp_jax as several processes on this machine that train one model together.
#
#   launch/local.sh -n 4 train --config=configs/mae/digits.py --workdir=runs/mae
#
#   -n N          processes (default: 2); on a machine with GPUs each takes one of them
#   --dry-run     print the commands and run nothing
#   --help        print this
#
# Everything after these goes to `python -m mae_pp_jax`; PYTHON=… chooses another Python than .venv/bin/python.
# Process 0 prints here; what the others print stands in WORKDIR.processes/1.log, 2.log, … (warnings and errors only),
# or, for bench, in runs/bench.processes/.
# Ctrl-C or SIGTERM reaches all: they save at the same step and leave, and the same command goes on from there.
# When a process dies the others end too; those that have not ended of themselves within GRACE (60) seconds are killed.
# Exit code: that of the process that ended first without success; 128 + the signal's number if a signal killed it.
set -u

usage() { sed -n '2,/^set -u/s/^# \{0,1\}//p' "$0"; }
wrong() { echo "error: $1" >&2; exit 2; }

n=2 dry_run=
while [ $# -gt 0 ]; do
  case $1 in
    -n) [ $# -gt 1 ] || wrong "-n: give the number of processes"; n=$2; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    --help | -h) usage; exit 0 ;;
    *) break ;;
  esac
done
[[ $n =~ ^[1-9][0-9]*$ ]] || wrong "-n: $n is not a number of processes"
[ $# -gt 0 ] || { usage >&2; exit 2; }

workdir=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --workdir=*) workdir=${!i#*=} ;;
    --workdir) j=$((i + 1)); workdir=${!j-} ;;
  esac
done
[ -n "$workdir" ] || [ "$1" != bench ] || workdir=runs/bench
[[ $workdir != *://* ]] || wrong "--workdir: $workdir is no folder of this machine; give one, such as --workdir=runs/mae"
[ -n "$workdir" ] || wrong "--workdir: give the folder of the run, such as --workdir=runs/mae"
logs=${workdir%/}.processes

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=12345
[ -n "$dry_run" ] || port=$("$PYTHON" -c "$free_port") || wrong "PYTHON: $PYTHON does not run"

command=("$PYTHON" -m mae_pp_jax "$@" "--coordinator=127.0.0.1:$port" "--processes=$n")
if [ -n "$dry_run" ]; then
  for ((i = 0; i < n; i++)); do
    printf 'JAX_LOCAL_DEVICE_IDS=%d' "$i"
    printf ' %q' "${command[@]}" "--process=$i"
    [ "$i" -eq 0 ] || printf ' >%q 2>&1' "$logs/$i.log"
    echo ' &'
  done
  exit 0
fi

mkdir -p "$logs" || wrong "--workdir: cannot write $logs"
pids=()
for ((i = 0; i < n; i++)); do
  # JAX gives a process only the GPU of its own number; it means nothing to CPUs.
  if [ "$i" -eq 0 ]; then
    JAX_LOCAL_DEVICE_IDS=$i "${command[@]}" "--process=$i" &
  else
    JAX_LOCAL_DEVICE_IDS=$i "${command[@]}" "--process=$i" >"$logs/$i.log" 2>&1 &
  fi
  pids[i]=$!
done

tell_all() { for ((k = 0; k < n; k++)); do kill "-$1" "${pids[k]}" 2>/dev/null; done; }
trap 'tell_all TERM' INT TERM
trap 'tell_all KILL' EXIT

grace=${GRACE:-60}
left=$n code=0 failed_at=
ended=()
while [ "$left" -gt 0 ]; do
  sleep 0.2
  for ((i = 0; i < n; i++)); do
    if [ -n "${ended[i]-}" ] || kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
    wait "${pids[i]}" 2>/dev/null # without bash's notice of a signal
    ended[i]=$?
    left=$((left - 1))
    if [ "${ended[i]}" -ne 0 ] && [ -z "$failed_at" ]; then
      failed_at=$SECONDS
      code=${ended[i]}
      case $code in
        2 | 3 | 75) ;; # these have said why, process 0 has printed it
        *) echo "local.sh: process $i ended with $code; the others end too (see $logs/)" >&2 ;;
      esac
    fi
  done
  if [ -n "$failed_at" ] && [ $((SECONDS - failed_at)) -ge "$grace" ]; then tell_all KILL; fi
done
exit "$code"

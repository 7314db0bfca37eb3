#!/usr/bin/env bash
# Runs a command again for as long as it leaves with 75: preempted, state saved. Any other exit code is the last word.
#
#   launch/until_done.sh python -m mae_pp_jax train --config=configs/mae/digits.py --workdir=runs/mae
set -u
[ $# -gt 0 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2; }
while :; do
  code=0
  "$@" || code=$?
  [ "$code" -eq 75 ] || exit "$code"
  echo "until_done: preempted, starting again" >&2
done

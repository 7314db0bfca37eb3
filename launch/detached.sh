#!/usr/bin/env bash
# Starts a command that goes on when this connection is cut, and shows what it prints; while it runs, only shows that.
#
#   launch/detached.sh FOLDER COMMAND…     FOLDER/{log,pid,code} belong to the command; exit code: the command's
set -u
[ $# -gt 1 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2; }
folder=$1
shift
mkdir -p "$folder" || exit 2
if ! kill -0 "$(cat "$folder/pid" 2>/dev/null)" 2>/dev/null; then
  rm -f "$folder/code"
  # shellcheck disable=SC2016  # expanded by the inner shell
  nohup bash -c '"${@:2}"; echo $? >"$1/code"' - "$folder" "$@" >"$folder/log" 2>&1 </dev/null &
  echo $! >"$folder/pid"
fi
tail -n +1 -f --pid="$(cat "$folder/pid")" "$folder/log"
exit "$(cat "$folder/code")"

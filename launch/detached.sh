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
  : >"$folder/log" || exit 2  # before anyone looks at it: the command may begin later than the line that shows it
  # shellcheck disable=SC2016  # expanded by the inner shell
  nohup bash -c '"${@:2}"; echo $? >"$1/code"' - "$folder" "$@" >>"$folder/log" 2>&1 </dev/null &
  echo $! >"$folder/pid"
  disown  # else bash itself says when it is killed
fi
tail -n +1 -f --pid="$(cat "$folder/pid")" "$folder/log"
[ -s "$folder/code" ] || { echo "error: the command was killed before it ended; the same line starts it again" >&2; exit 1; }
exit "$(cat "$folder/code")"

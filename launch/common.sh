# shellcheck shell=bash disable=SC2034
# What the launch scripts share: options, dry runs, TPU slices. Not a command of its own.

# The comment at the head of the script that is running.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

wrong() {
  echo "error: $1" >&2
  exit 2
}

# options "NAME… FLAG! …" ARGUMENT…: sets a variable NAME for each --NAME=VALUE, FLAG=1 for each --FLAG, and leaves in
# the array `command` what follows: a verb of mae_pp_jax and its arguments, of which `workdir` is one.
dry_run='' command=() workdir=''
options() {
  local known_=" $1 dry_run! " option_
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) usage; exit 0 ;;
      --*) ;;
      *) break ;;
    esac
    option_=${1%%=*}
    option_=${option_#--}
    option_=${option_//-/_}
    if [[ $1 == *=* && $known_ == *" $option_ "* ]]; then
      printf -v "$option_" '%s' "${1#*=}"
    elif [[ $1 != *=* && $known_ == *" $option_! "* ]]; then
      printf -v "$option_" 1
    elif [[ $known_ == *" $option_ "* ]]; then
      wrong "$1: give a value, $1=…"
    else
      wrong "$1: unknown option; see $0 --help"
    fi
    shift
  done
  [ $# -gt 0 ] || wrong "give a verb and its arguments at the end: train --config=… --workdir=…; see $0 --help"
  case $1 in
    train | pipeline | evaluate) ;;
    *) wrong "$1: not a verb that trains or evaluates; give train, pipeline or evaluate" ;;
  esac
  for option_; do [[ $option_ != --workdir=* ]] || workdir=${option_#*=}; done
  [ -n "$workdir" ] || wrong "--workdir: give the folder of the run, on storage that all hosts share"
  [[ $workdir != *://* ]] || wrong "--workdir: $workdir is no folder; give one on storage that all hosts mount"
  [[ $1 == evaluate || " $*" == *" --config="?* ]] || wrong "--config: give a config, such as configs/mae/in1k.py"
  command=("$@")
}

# required NAME…: refuses empty ones.
required() {
  local option_
  for option_; do
    [ -n "${!option_}" ] || wrong "--$option_: missing; see $0 --help"
  done
}

# below_mount: refuses a --workdir outside the share that --nfs names, since each host would write to a disk of its own.
below_mount() {
  [[ $workdir == /mnt/shared/?* ]] || wrong "--workdir: $workdir is not below /mnt/shared, where all hosts mount --nfs"
}

# quoted WORD…: the words as a shell reads them.
quoted() {
  local word out=''
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then out+=" $word"; else out+=" '${word//\'/\'\\\'\'}'"; fi
  done
  printf '%s' "${out# }"
}

# run WORD…: runs a command, or prints it in a dry run.
run() {
  if [ -n "$dry_run" ]; then
    quoted "$@"; echo
  else
    "$@"
  fi
}

# private_folder: makes the folder `private`, which only this user can read and whose name nobody can guess, for the files
# that a command is given; it goes when the script ends. A dry run makes none and only names it.
private=${TMPDIR:-/tmp}/mae_pp_jax.XXXXXXXX
private_folder() {
  [ -z "$dry_run" ] || return 0
  private=$(mktemp -d "$private")
  trap 'rm -rf "$private"' EXIT
}

# tpu_slice v5p:4x4x8: what Google calls a slice that `plan` calls so. Hosts of larger slices hold four chips each.
generation='' shape='' chips=0 hosts=0 chips_per_host=0
tpu_slice() {
  [[ $1 =~ ^(v4|v5p|v5e|v6e):([0-9]+(x[0-9]+)+)$ ]] || wrong "--topology: $1 is not a slice such as v5p:4x4x8 or v5e:8x8"
  generation=${BASH_REMATCH[1]} shape=${BASH_REMATCH[2]}
  local axes=${shape//[0-9]/} wanted=xx
  case $generation in v5e | v6e) wanted=x ;; esac
  [ "$axes" = "$wanted" ] || wrong "--topology: a $generation slice has $((${#wanted} + 1)) sides, $shape has $((${#axes} + 1))"
  chips=$((${shape//x/*}))
  chips_per_host=4
  if [ "$wanted" = x ] && [ "$chips" -le 8 ]; then chips_per_host=$chips; fi
  if [ "$chips" -eq 0 ] || [ $((chips % chips_per_host)) -ne 0 ]; then
    wrong "--topology: $shape is not made of whole hosts of 4 chips"
  fi
  hosts=$((chips / chips_per_host))
}

# gcloud's name of the slice and of the system image that goes with it; v4 and v5p are counted in cores, two per chip.
accelerator_type() {
  case $generation in
    v4 | v5p) echo "$generation-$((2 * chips))" ;;
    v5e) echo "v5litepod-$chips" ;;
    v6e) echo "v6e-$chips" ;;
  esac
}
runtime_version() {
  case $generation in
    v4) echo tpu-ubuntu2204-base ;;
    v5p) echo v2-alpha-tpuv5 ;;
    v5e) echo v2-alpha-tpuv5-lite ;;
    v6e) echo v2-alpha-tpuv6e ;;
  esac
}

# The commands that ready a TPU host: the shared storage, and the package in .venv of the current folder. The images
# bring an older Python than the package needs.
mount_nfs() {
  echo "sudo apt-get -qq install -y nfs-common && sudo mkdir -p /mnt/shared &&" \
    "{ mountpoint -q /mnt/shared || sudo mount -t nfs $(quoted "$1") /mnt/shared; }"
}
install_package() {
  echo "python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python=3.12 .venv &&" \
    "python3 -m uv pip install --quiet --python=.venv/bin/python --constraint constraints.txt --editable '.[tpu]'"
}

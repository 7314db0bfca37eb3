#!/usr/bin/env bash
# Trains on a Slurm cluster: writes a batch script and hands it to sbatch. One process a GPU, or one a node without GPUs.
#
#   launch/slurm.sh --name=mae-l --nodes=4 --gpus=8 --time=24:00:00 --partition=gpu \
#     train --config=configs/mae/in1k.py:size=L/16 --workdir=/shared/runs/mae_l
#
#   --name=NAME           of the job
#   --nodes=N             machines (default: 1)
#   --gpus=N              GPUs of each machine; 0 for none (default: 8)
#   --time=D-HH:MM:SS     limit of one stay in the cluster (default: the partition's); the run goes on in the next
#   --partition=NAME      where to run (default: the cluster's)
#   --account=NAME        who pays (default: the cluster's)
#   --python=PATH         Python with the package, seen by all machines (default: .venv/bin/python)
#   --dry-run             print the batch script and the command, and run nothing
#
# Two minutes before the time limit, and when Slurm preempts the job, the run saves and leaves with 75; then the job is
# queued again and resumes. --workdir must lie on storage that all machines share. The log is NAME-JOB.log.
set -euo pipefail
. "$(dirname "$0")/common.sh"

name='' nodes=1 gpus=8 time='' partition='' account='' python=.venv/bin/python
options "name nodes gpus time partition account python" "$@"
required name nodes gpus python
[[ $nodes =~ ^[1-9][0-9]*$ ]] || wrong "--nodes: $nodes is not a number of machines"
[[ $gpus =~ ^[0-9]+$ ]] || wrong "--gpus: $gpus is not a number of GPUs"

batch() {
  echo '#!/bin/bash'
  printf '#SBATCH %s\n' "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$((gpus > 0 ? gpus : 1))"
  [ "$gpus" -eq 0 ] || echo "#SBATCH --gpus-per-node=$gpus"
  printf '#SBATCH %s\n' --exclusive --requeue --signal=TERM@120 --open-mode=append "--output=$name-%j.log"
  [ -z "$time" ] || echo "#SBATCH --time=$time"
  [ -z "$partition" ] || echo "#SBATCH --partition=$partition"
  [ -z "$account" ] || echo "#SBATCH --account=$account"
  cat <<END
cd $(quoted "$PWD")
# All tasks see all GPUs of their machine, as JAX gives each the one of its number. When one ends, the others have a
# minute to end of themselves.
code=0
srun --kill-on-bad-exit=0 --wait=60 --gpu-bind=none $(quoted "$python" -m mae_pp_jax "${command[@]}") || code=\$?
[ "\$code" -ne 75 ] || scontrol requeue "\$SLURM_JOB_ID"
exit "\$code"
END
}

private_folder
script=$private/$name.sbatch
if [ -n "$dry_run" ]; then
  echo "# $script:"
  batch
else
  batch >"$script"
fi
run sbatch "$script"

#!/usr/bin/env bash
# Trains on a Cloud TPU slice that is at hand: makes it, copies the committed code there and runs one process per host.
#
#   launch/tpu_vm.sh --name=mae-l --project=P --zone=us-central2-b --topology=v4:2x2x4 --nfs=10.0.0.2:/runs \
#     train --config=configs/mae/in1k.py:size=L/16 --workdir=/mnt/shared/mae_l
#
#   --name=NAME           of the slice
#   --project=PROJECT     Google Cloud project
#   --zone=ZONE           where the slice is or shall be
#   --topology=SLICE      as in `plan`: v4:2x2x4, v5p:4x4x8, v5e:8x8, v6e:4x4
#   --nfs=HOST:/FOLDER    storage that all hosts mount at /mnt/shared, such as a Filestore share: --workdir belongs there
#   --spot                cheaper, may be taken away at any time
#   --delete              delete the slice when the run has ended
#   --dry-run             print every command and run nothing
#
# A connection that breaks stops nothing: the same command shows the run again. Exit 75 (preempted, saved) starts the
# run again on the spot; a slice that was taken away is made anew by the same command, and the run resumes.
set -euo pipefail
. "$(dirname "$0")/common.sh"

name='' project='' zone='' topology='' nfs='' spot='' delete=''
options "name project zone topology nfs spot! delete!" "$@"
required name project zone topology nfs
below_mount
tpu_slice "$topology"
where=("$name" "--project=$project" "--zone=$zone")

state=
[ -n "$dry_run" ] || state=$(gcloud compute tpus tpu-vm describe "${where[@]}" '--format=value(state)' 2>/dev/null) || true
if [ -n "$state" ] && [ "$state" != READY ]; then
  run gcloud compute tpus tpu-vm delete "${where[@]}" --quiet
  state=
fi
if [ -z "$state" ]; then
  run gcloud compute tpus tpu-vm create "${where[@]}" "--accelerator-type=$(accelerator_type)" \
    "--version=$(runtime_version)" ${spot:+--spot}
fi

private_folder
code=mae_pp_jax-$name.tar.gz
on_all() { run gcloud compute tpus tpu-vm ssh "${where[@]}" --worker=all "--command=$1"; }
run git archive --format=tar.gz "--output=$private/$code" HEAD
run gcloud compute tpus tpu-vm scp "$private/$code" "${where[0]}:$code" "${where[@]:1}" --worker=all
on_all "$(mount_nfs "$nfs") && mkdir -p mae_pp_jax && tar -xzf $code -C mae_pp_jax && cd mae_pp_jax && $(install_package)"
ended=0
on_all "cd mae_pp_jax && launch/detached.sh ~/run launch/until_done.sh .venv/bin/python -m mae_pp_jax $(quoted "${command[@]}")" || ended=$?
[ -z "$delete" ] || run gcloud compute tpus tpu-vm delete "${where[@]}" --quiet
exit "$ended"

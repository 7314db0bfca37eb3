#!/usr/bin/env bash
# Trains on a Cloud TPU slice as soon as Google has one: asks for it in the queue; its hosts start the run by themselves.
#
#   launch/tpu_queued.sh --name=wsp-b --project=P --zone=us-east5-a --topology=v5p:4x4x8 --nfs=10.0.0.2:/runs --spot \
#     --repository=https://github.com/ME/mae_pp_jax train --config=configs/wsp/folder.py --workdir=/mnt/shared/wsp_b
#
#   --name=NAME           of the request and of the slice
#   --project=PROJECT     Google Cloud project
#   --zone=ZONE           where the slice shall be
#   --topology=SLICE      as in `plan`: v4:2x2x4, v5p:4x4x8, v5e:8x8, v6e:4x4
#   --nfs=HOST:/FOLDER    storage that all hosts mount at /mnt/shared, such as a Filestore share: --workdir belongs there
#   --repository=URL      where the hosts get the code
#   --revision=COMMIT     which commit of it (default: the one checked out here)
#   --spot                cheaper, may be taken away at any time
#   --watch               stay, show the state once a minute, and ask again when the slice was taken away
#   --dry-run             print every command and the script of the hosts, and run nothing
#
# Exit 75 (preempted, saved) starts the run again on the spot. A slice that was taken away leaves the request SUSPENDED:
# the same command asks again, and the run resumes. The log of a host: sudo journalctl -u google-startup-scripts.
# When the run has ended: gcloud compute tpus queued-resources delete NAME --force
set -euo pipefail
. "$(dirname "$0")/common.sh"

name='' project='' zone='' topology='' nfs='' repository='' revision='' spot='' watch=''
options "name project zone topology nfs repository revision spot! watch!" "$@"
required name project zone topology nfs repository
below_mount
tpu_slice "$topology"
revision=${revision:-$(git rev-parse HEAD)}
where=("$name" "--project=$project" "--zone=$zone")

private_folder
startup=$private/$name.startup.sh
startup_script() {
  cat <<END
#!/bin/bash
set -e
export HOME=/root
cd /root
$(mount_nfs "$nfs")
[ -d mae_pp_jax ] || git clone --quiet $(quoted "$repository") mae_pp_jax
cd mae_pp_jax
git fetch --quiet && git checkout --quiet $(quoted "$revision")
$(install_package)
exec launch/until_done.sh .venv/bin/python -m mae_pp_jax $(quoted "${command[@]}")
END
}

ask() {
  run gcloud compute tpus queued-resources create "${where[@]}" "--node-id=$name" \
    "--accelerator-type=$(accelerator_type)" "--runtime-version=$(runtime_version)" ${spot:+--spot} \
    "--metadata-from-file=startup-script=$startup"
}
state_now() {
  gcloud compute tpus queued-resources describe "${where[@]}" '--format=value(state.state)' 2>/dev/null || true
}

if [ -n "$dry_run" ]; then
  echo "# $startup:"
  startup_script | sed 's/^/# /'
  ask
  exit 0
fi
startup_script >"$startup"
while :; do
  state=$(state_now)
  case $state in
    SUSPENDED | FAILED)
      gcloud compute tpus queued-resources delete "${where[@]}" --force --quiet
      ask
      ;;
    '') ask ;;
    *) echo "$name: $state" >&2 ;;
  esac
  [ -n "$watch" ] || exit 0
  sleep "${WATCH_SECONDS:-60}"
done

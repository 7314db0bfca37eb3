#!/usr/bin/env bash
# Trains on a TPU slice of a Google Kubernetes Engine cluster: writes the manifest of a JobSet and applies it.
#
#   launch/gke.sh --name=mae-l --topology=v5p:4x4x8 --image=us-docker.pkg.dev/P/R/mae_pp_jax --nfs=10.0.0.2:/runs \
#     train --config=configs/mae/in1k.py:size=L/16 --workdir=/mnt/shared/mae_l
#
#   --name=NAME           of the JobSet: lower-case letters, digits and dashes
#   --topology=SLICE      as in `plan`: v4:2x2x4, v5p:4x4x8, v5e:8x8, v6e:4x4; the cluster needs a node pool of it
#   --image=IMAGE         container with the package installed and the repository as its working folder
#   --nfs=HOST:/FOLDER    storage that all hosts mount at /mnt/shared, such as a Filestore share: --workdir belongs there
#   --namespace=NAME      of Kubernetes (default: default)
#   --max_restarts=N      how often to start again after a crash (default: 10)
#   --dry-run             print the manifest and the command, and run nothing
#
# One pod a host; JAX finds the others by what GKE tells each pod. Exit 75 (preempted, saved), or a host that is taken
# away, starts all pods again without counting; 2 (wrong input) and 3 (not finite) end the JobSet; any other failure
# starts all again up to --max_restarts times. The JobSet controller must be installed in the cluster.
set -euo pipefail
. "$(dirname "$0")/common.sh"

name='' topology='' image='' nfs='' namespace=default max_restarts=10
options "name topology image nfs namespace max_restarts" "$@"
required name topology image nfs
below_mount
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || wrong "--name: $name must be lower-case letters, digits and dashes"
[[ $max_restarts =~ ^[0-9]+$ ]] || wrong "--max_restarts: $max_restarts is not a number"
[[ $nfs == ?*:/* ]] || wrong "--nfs: $nfs is not HOST:/FOLDER"
tpu_slice "$topology"
case $generation in
  v5e) accelerator=tpu-v5-lite-podslice ;;
  v4) accelerator=tpu-v4-podslice ;;
  *) accelerator=tpu-$generation-slice ;;
esac

# word WORD: as a string of YAML.
word() { printf "'%s'" "${1//\'/\'\'}"; }

manifest() {
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  namespace: $namespace
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $max_restarts
    restartStrategy: BlockingRecreate
    rules:
      - name: wrongInputOrNotFinite
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
        onJobFailureMessagePatterns: ['exit code [23]( |$)']
      - name: preempted
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: hosts
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2, 3, 75]
              - action: FailJob
                onPodConditions:
                  - type: DisruptionTarget
                    status: 'True'
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $shape
              containers:
                - name: train
                  image: $(word "$image")
                  command: [python, -m, mae_pp_jax]
                  args:
$(for argument in "${command[@]}" --join_timeout=3600; do echo "                    - $(word "$argument")"; done)
                  resources:
                    limits:
                      google.com/tpu: $chips_per_host
                  volumeMounts:
                    - name: shared
                      mountPath: /mnt/shared
              volumes:
                - name: shared
                  nfs:
                    server: $(word "${nfs%%:*}")
                    path: $(word "${nfs#*:}")
END
}

private_folder
file=$private/$name.yaml
if [ -n "$dry_run" ]; then
  manifest
  printf -- '---\n# '
else
  manifest >"$file"
fi
run kubectl apply -f "$file"

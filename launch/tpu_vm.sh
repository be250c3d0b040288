#!/usr/bin/env bash
# A sweep on all hosts of a Cloud TPU VM slice, from one chip to a pod, from a checkout on your own machine:
#
#   TPU=NAME ZONE=ZONE launch/tpu_vm.sh mesh.fsdp=16      keys for the sweep
#
# It copies the checkout to every host, installs it, starts the same command on each, and brings the results back. The
# hosts are one JAX program, and the first one writes. Given again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."

TPU=${TPU:?name your TPU VM: TPU=NAME}
ZONE=${ZONE:?name its zone: ZONE=ZONE}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$TPU":stability.tar.gz --zone="$ZONE" --worker=all
on_all_hosts "mkdir -p stability && tar -xzf stability.tar.gz -C stability"
on_all_hosts "cd stability && python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]'"

more=""
if [ $# -gt 0 ]; then
  more=$(printf ' %q' "$@") # quoted for the shell there
fi
code=0
on_all_hosts "cd stability && . .venv/bin/activate && \
  python -m stability.run +sweep=qk_layernorm host=tpu_v5e$more" || code=$?

mkdir -p results
gcloud compute tpus tpu-vm scp --recurse "$TPU":stability/results/. results --zone="$ZONE" --worker=0
exit "$code"

#!/usr/bin/env bash
# A sweep as a Slurm array of identical commands, for those who prefer a script to launcher=slurm (docs/launching.md).
#
#   sbatch launch/slurm.sh                                                            from the folder that results/ is in
#   sbatch --array=0-3 --partition=NAME --time=04:00:00 launch/slurm.sh seed=0,1,2    options for Slurm, keys for the sweep
#
# Each task takes runs that no other has, and ends when none is left. Told that its time is up, it saves and is queued
# again. The jobs inherit your environment: activate the one that has `stability` before.
#SBATCH --job-name=stability
#SBATCH --array=0-7
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=stability_%A_%a.out
set -euo pipefail

# Of an array: what other tasks train is left to them, instead of waiting for it.
export STABILITY_SLURM_TASK=1

python -m stability.run +sweep=qk_layernorm host=gpu "$@" &
command=$!
time_is_up=no
# Slurm tells this shell alone, ahead of the limit. The command saves at SIGTERM.
trap 'time_is_up=yes; kill -TERM "$command"' USR1

code=0
wait "$command" || code=$?
while kill -0 "$command" 2>/dev/null; do # the signal ended the wait, not the command
  code=0
  wait "$command" || code=$?
done
if [ "$code" = 130 ] && [ "$time_is_up" = yes ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

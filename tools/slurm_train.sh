#!/usr/bin/env bash
# Trains on GPUs of a Slurm cluster, by srun.
set -euo pipefail

if [ $# -lt 3 ]; then
    cat >&2 <<'USAGE'
usage: slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [options of train.py]

In the environment:
  GPUS           number of processes, one a GPU (default: 8)
  GPUS_PER_NODE  of them on one machine (default: 8, or GPUS if that is less)
  CPUS_PER_TASK  CPU cores for each process (default: 5)
  SRUN_ARGS      more options of srun, separated by spaces
PYTHON names the interpreter (default: python).
USAGE
    exit 2
fi
partition=$1 job=$2 config=$3
shift 3
work_dir=()
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    work_dir=(--work-dir "$1")
    shift
fi
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
read -ra srun_args <<<"${SRUN_ARGS:-}"
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

exec env PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" \
    srun --partition="$partition" \
    --job-name="$job" \
    --gres="gpu:$per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$tools/train.py" "$config" --launcher slurm \
    ${work_dir[@]+"${work_dir[@]}"} "$@"

#!/usr/bin/env bash
# Trains on several GPUs of one or more machines, by torchrun.
set -euo pipefail

if [ $# -lt 2 ]; then
    cat >&2 <<'USAGE'
usage: dist_train.sh CONFIG GPUS [options of train.py]

GPUS is the number of processes on this machine, one a GPU. On several machines, run it on
each, with these in the environment:
  NNODES       number of machines (default: 1)
  NODE_RANK    which one this is, from 0 (default: 0)
  MASTER_ADDR  address of machine 0 (default: 127.0.0.1)
  PORT         a free port there; another one for each job on a machine (default: 29500)
PYTHON names the interpreter (default: python).
USAGE
    exit 2
fi
config=$1 gpus=$2
shift 2
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

exec env PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" \
    "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$tools/train.py" "$config" --launcher pytorch "$@"

#!/bin/bash
# A run on machines without a scheduler: the same command on each, with its own NODE_RANK.
#
#   launchers/torchrun.sh RECIPE [key=value ...]                                                # this machine, all its GPUs
#   NPROC_PER_NODE=2 ACCELERATE_USE_CPU=true launchers/torchrun.sh RECIPE                       # two processes on the CPU
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 launchers/torchrun.sh RECIPE                      # on 10.0.0.1
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 launchers/torchrun.sh RECIPE                      # on the other
set -euo pipefail

if (($# == 0)); then
  echo "usage: [NNODES= NODE_RANK= MASTER_ADDR= MASTER_PORT= NPROC_PER_NODE=] $0 RECIPE [key=value ...]" >&2
  exit 2
fi
nodes=${NNODES:-1}
python=${DISTILL_PYTHON:-python3}
count=(--nproc-per-node "${NPROC_PER_NODE:-gpu}")
if ((nodes == 1)); then
  meet=(--standalone)
else
  meet=(--nnodes "$nodes" --node-rank "${NODE_RANK:?the number of this machine, from 0}"
    --master-addr "${MASTER_ADDR:?the address of machine 0}" --master-port "${MASTER_PORT:-29500}")
fi
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1} NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# SIGUSR1 is for the processes that it starts: pkill -USR1 -f 'distill train' stops and saves.
exec "$python" -m distill launch "${meet[@]}" "${count[@]}" train "$@"

#!/bin/bash
# srun starts this script once on each node of a job: `check` checks a recipe, `train` starts this
# node's processes, of distill train, or of the command in DISTILL_COMMAND. It is not part of the
# batch script because the values of a node must expand on that node.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mode=$1
shift

fail() {
  echo "error: $(hostname): $*" >&2
  exit 2
}

# SIGUSR1 to the steps of a job (scancel --signal=USR1 JOB) reaches every process in them.
stopping=""
trap 'stopping=USR1; touch "$DISTILL_STATE/stop_requested"' USR1
trap 'stopping=TERM' TERM

python=${DISTILL_PYTHON:-}
if [[ -z $python ]]; then
  for python in "$(dirname "$(command -v distill || true)")/python" "$here/../../.venv/bin/python" "$(command -v python3 || true)"; do
    [[ ! -x $python ]] || break
  done
fi
[[ -x $(command -v "$python" || true) ]] || fail "no Python at ${python:-PATH}: set DISTILL_PYTHON to one that has distill, on every node"
"$python" -c 'import distill' 2>/dev/null ||
  fail "$python has no distill: activate its environment before sbatch, or set DISTILL_PYTHON to the python that has it"

if [[ $mode == check ]]; then
  (
    trap '' USR1 TERM
    exec "$python" -m distill recipe check "$@"
  )
  exit
fi

per_node=$DISTILL_PROCESSES_PER_NODE nodes=$SLURM_JOB_NUM_NODES
gpus=${SLURM_GPUS_ON_NODE:-0}
if ((gpus > 0 && gpus < per_node)); then
  fail "$gpus GPUs here, but $per_node processes a node: ask for as many on each (--gpus-per-node)"
fi
threads=$(((${SLURM_CPUS_ON_NODE:-1}) / per_node))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
export PYTHONUNBUFFERED=1
# At SIGTERM the launcher would kill the ranks after 30 s. SLURM has its own limit (KillWait,
# GraceTime). Releases of torch that do not know this variable keep the 30 s.
export PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT
# Set if a launcher started the shell.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE

if ((nodes * per_node == 1)); then
  launcher=("$python")
else
  launcher=("$python" -m accelerate.commands.launch --config_file "$here/../accelerate/nodes.yaml"
    --num_machines "$nodes" --num_processes "$((nodes * per_node))" --machine_rank "$SLURM_NODEID"
    --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT")
fi

export DISTILL_RANKS=$DISTILL_STATE/node$SLURM_NODEID
mkdir -p "$DISTILL_RANKS"
# The launcher must survive a signal that is for the ranks, which handle it themselves (rank.py).
(
  trap '' USR1 TERM
  exec "${launcher[@]}" "$here/rank.py" "${DISTILL_COMMAND:-train}" "$@"
) &
pid=$!
while kill -0 "$pid" 2>/dev/null; do
  # Repeated, since a rank that is still importing ignores it. One rank is enough, since all agree
  # when to stop.
  if [[ -n $stopping || -e $DISTILL_STATE/stop_requested ]]; then
    for rank in "$DISTILL_RANKS"/*; do
      kill -s "${stopping:-USR1}" "${rank##*/}" 2>/dev/null || true
    done
  fi
  (
    trap '' USR1 TERM
    exec sleep 0.5
  ) &
  wait $! || true # ends at a signal
done
code=0
wait "$pid" || code=$?
[[ $SLURM_NODEID != 0 ]] || echo "$code" >"$DISTILL_STATE/ended"
exit "$code"

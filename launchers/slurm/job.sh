# shellcheck shell=bash
# The common part of train.sbatch and sweep.sbatch. They source it on the first node of a job, and
# call `run RECIPE [key=value ...]`.
#
# A job ends in one of four ways:
#   the recipe is done                                                exit 0
#   stopped by USR1 or preempted, state saved                         requeued; SLURM starts it again and the run resumes
#   stopped by something else (scancel, scontrol requeue), saved      exit 75; SLURM cancels or requeues the job
#   failed                                                            the exit code; never requeued, so it cannot fail again and again

: "${here:?set by the script that sources this one: the folder of these files}"
# The id of an array task: the plain number of an array's first task means all of the array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

# How long the other nodes may run after the first one ended.
LAST_NODE_S=10

say() { printf '%(%F %T)T job %s: %s\n' -1 "$job" "$*"; }

fail() {
  say "error: $*"
  exit 2
}

# The address at which SLURM itself reaches the first node, which is this one.
first_address() {
  local first address
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  address=$(scontrol show node "$first" | grep -oE 'NodeAddr=[^ ]+' | head -n 1)
  echo "${address:+${address#NodeAddr=}}" | grep . || echo "$first"
}

# With a grace time, preemption is a SIGTERM to the steps and a PreemptTime in the job; SLURM does
# not requeue a script that ends in time.
preempted() { scontrol show job "$job" | grep -qE 'PreemptTime=[0-9]'; }

# srun with the options of every step. --mpi=none: we do not use MPI, and Accelerate would read
# ranks from its variables. --cpu-bind=none: the one task of a node is many processes. --export=ALL,
# also under sbatch --export=NONE. It replaces the shell by srun, so call it in a subshell. scancel
# --full sends signals to the tasks itself, so srun need not forward them.
step() {
  local extra=()
  read -ra extra <<<"${DISTILL_SRUN_ARGS:-}"
  trap '' USR1
  exec srun --ntasks-per-node=1 --kill-on-bad-exit=1 --export=ALL --mpi=none --cpu-bind=none "${extra[@]}" "$@"
}

run() {
  local code=0 terminated=""
  local restarts=${SLURM_RESTART_COUNT:-0} nodes=$SLURM_JOB_NUM_NODES
  # Files by which this script and the first node's node.sh communicate. node.sh may run in a
  # container, so they are not in /tmp.
  export DISTILL_STATE=$PWD/.distill-slurm-$job
  rm -rf "$DISTILL_STATE"
  mkdir -p "$DISTILL_STATE" || fail "$PWD cannot be written"
  trap 'rm -rf "$DISTILL_STATE"' EXIT
  # The time limit is near (--signal above), or scancel --signal=USR1 --batch. node.sh looks for
  # this file.
  trap 'touch "$DISTILL_STATE/stop_requested"' USR1
  # SLURM is ending the job. It signals the ranks too: wait until they have saved.
  trap 'terminated=1' TERM

  local gpus=${SLURM_GPUS_ON_NODE:-0}
  export DISTILL_PROCESSES_PER_NODE=${DISTILL_PROCESSES_PER_NODE:-$((gpus > 0 ? gpus : 1))}
  ((gpus > 0)) || export ACCELERATE_USE_CPU=${ACCELERATE_USE_CPU:-true}
  # Since 22.05 srun does not inherit this from sbatch.
  if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  fi
  MASTER_ADDR=${DISTILL_MASTER_ADDR:-$(first_address)}
  # Below the ephemeral ports (32768 and up). Another one after a requeue, since the previous may
  # still be closing.
  MASTER_PORT=${DISTILL_MASTER_PORT:-$((20000 + (SLURM_JOB_ID * 17 + restarts) % 12000))}
  export MASTER_ADDR MASTER_PORT
  local processes=$((nodes * DISTILL_PROCESSES_PER_NODE))
  say "$nodes nodes ($SLURM_JOB_NODELIST), $processes processes, meeting at $MASTER_ADDR:$MASTER_PORT, restart $restarts"

  # Errors in a recipe, an override or an installation show here, before every node starts. A
  # restarted job was checked already.
  if ((restarts == 0)) && [[ ${DISTILL_CHECK:-yes} == yes ]]; then
    (step --nodes=1 --ntasks=1 bash "$here/node.sh" check --processes "$processes" "$@") || code=$?
    if ((code)); then
      say "the check failed: not requeued"
      exit "$code"
    fi
  fi

  local label=()
  ((nodes == 1)) || label=(--label)
  (step --nodes="$nodes" --ntasks="$nodes" "${label[@]}" bash "$here/node.sh" train "$@") &
  local step_pid=$!
  # srun waits a minute or more for the tasks of a lost node. Once this node has ended, the others
  # have nothing left to do.
  local seconds=0
  while kill -0 "$step_pid" 2>/dev/null; do
    if [[ -e $DISTILL_STATE/ended ]] && ((seconds++ == LAST_NODE_S)); then
      say "this node ended $LAST_NODE_S s ago, and another has not: stopping it"
      kill -KILL "$step_pid"
    fi
    (
      trap '' USR1 TERM
      exec sleep 1
    ) &
    wait $! || true # ends at a signal
  done
  wait "$step_pid" || code=$?

  if [[ ! -e $DISTILL_STATE/stopped ]]; then
    ((code == 0)) || say "failed with exit code $code: not requeued; the same command resumes from the last checkpoint"
    exit "$code"
  fi
  if [[ -n $terminated ]]; then
    say "state saved; SLURM ends this job: unless it requeues it, the same command resumes it"
    exit 75
  fi
  if [[ ! -e $DISTILL_STATE/stop_requested ]] && ! preempted; then
    say "stopped by a signal that asks for no restart, state saved: the same command resumes it"
    exit 75
  fi
  if ! scontrol requeue "$job"; then
    say "state saved, but SLURM does not requeue this job: submit the same command again"
    exit 75
  fi
  say "state saved, requeued"
  exit 0
}

#!/usr/bin/env bash
# Train on a SLURM cluster, on one machine or several. Edit the part between the lines, then, from
# the root of the repository:
#
#   sbatch run_scripts/slurm.sh
#
# Before the time limit and on preemption the run is saved, and the job is requeued and resumes, until
# the last step. See docs/cluster.md.
#
# SLURM reads no #SBATCH line after the first command. The settings above the line: one task per
# machine; SIGUSR1 to the shell of this script only, two minutes before the time limit.
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
# ----------------------------------------------------------------------------------------------
#SBATCH --job-name=s3prl-mtl
#SBATCH --output=slurm-%j.out
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00

# Arguments of `s3prl-mtl train`. Name the run (-n or -p), so that the next job finds its folder. The folder
# and the corpora must be on a file system shared by all machines. `-a` is added.
words=(-u hubert -d asr,pr,sf,ks,ic,sid,er,sv,sd --data /path/to/corpora -n first)

# Sourced first: the environment with the project.
environment=.venv/bin/activate

# Maximum number of restarts from the last checkpoint after a rank has failed.
restarts=3

# If the machines do not find each other: the network interface that connects them.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# ----------------------------------------------------------------------------------------------
set -euo pipefail

# Exit code of a machine after a graceful shutdown.
export INTERRUPTED=75

# Run torchrun with the given arguments on one machine. SLURM signals this shell and, with some
# plugins, all of its processes. torchrun would fail on SIGTERM and die on SIGUSR1, so it is started
# with both ignored, and this shell forwards them to the ranks. The ranks ignore them as well until
# they can save, so the signal is repeated until they exit.
on_machine() {
    local agent code heard=""
    trap 'heard=yes' USR1 TERM
    (
        trap '' USR1 TERM
        exec python -m torch.distributed.run --signals-to-handle SIGINT,SIGHUP,SIGQUIT \
            --rdzv-conf "is_host=$((SLURM_NODEID == 0))" "$@"
    ) &
    agent=$!
    # A signal interrupts `wait`. After torchrun has exited, `wait` returns its exit code.
    while kill -0 "$agent" 2> /dev/null; do
        if [ -z "$heard" ]; then
            wait "$agent" || true
        else
            pkill -USR1 -P "$agent" || true
            sleep 2 || true
        fi
    done
    wait "$agent" && code=0 || code=$?
    if [ "$code" = 0 ] && [ -n "$heard" ]; then
        code=$INTERRUPTED
    fi
    return "$code"
}

asked=""
step=""
tell_ranks() {
    asked=yes
    # srun forwards SIGUSR1 to its tasks on all machines.
    [ -z "$step" ] || kill -USR1 "$step" 2> /dev/null || true
}
trap tell_ranks USR1 TERM

cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck disable=SC1090
source "$environment"
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${hosts%%$'\n'*}
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs on the same machine need different ports

srun_words=(--kill-on-bad-exit=0 --wait=0) # leave the other machines time to save
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    srun_words+=(--cpus-per-task="$SLURM_CPUS_PER_TASK") # srun does not inherit it
fi
torchrun_words=(
    --nnodes "$SLURM_JOB_NUM_NODES"
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}"
    --max-restarts "$restarts"
    --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
    --rdzv-backend c10d
    --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT"
)
# The other machines do not have this script, so the function is passed as text.
srun "${srun_words[@]}" bash -c "set -euo pipefail; $(declare -f on_machine); on_machine \"\$@\"" \
    on_machine "${torchrun_words[@]}" -m s3prl_mtl train "${words[@]}" -a &
step=$!
if [ -n "$asked" ]; then
    tell_ranks
fi
while kill -0 "$step" 2> /dev/null; do
    wait "$step" || true
done
wait "$step" && code=0 || code=$?
if [ "$code" != "$INTERRUPTED" ]; then
    exit "$code"
fi

# A job that was cancelled or requeued by SLURM is not in the state RUNNING.
case $(scontrol show job "$SLURM_JOB_ID") in
    *JobState=RUNNING*)
        echo "The run was interrupted: requeueing job $SLURM_JOB_ID."
        scontrol requeue "$SLURM_JOB_ID"
        ;;
    *)
        echo "The run was interrupted; SLURM cancels or requeues job $SLURM_JOB_ID."
        exit "$INTERRUPTED"
        ;;
esac

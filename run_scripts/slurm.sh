#!/usr/bin/env bash
# Train on a SLURM cluster, on one machine or several. Edit the part between the lines, then, from
# the root of the repository:
#
#   sbatch run_scripts/slurm.sh
#
# Before the time limit and on preemption the run saves itself, and the job goes back into the
# queue to go on where it was, until the last step. docs/cluster.md explains it.
#
# SLURM reads no #SBATCH line after the first command. Of those above the line, srun runs one task
# a machine, and the shell of this script, it alone, is warned two minutes before the time limit.
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

# What run_mtl.py is told. Name the run (-n or -p): the next job must find its folder, which lies,
# as the corpora do, on a file system that all machines see. `-a` is added.
words=(-u hubert -d asr,pr,sf,ks,ic,sid,er,sv,sd --data /path/to/corpora -n first)

# Sourced first: makes sure that `python` can run the project.
environment=.venv/bin/activate

# How often the ranks start again by themselves, from the last checkpoint, when one of them failed.
restarts=3

# Where the machines do not find each other: the network interface that joins them.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# ----------------------------------------------------------------------------------------------
set -euo pipefail

# Exit code of a machine whose ranks were asked to stop and have stopped in order.
export INTERRUPTED=75

# What runs on every machine, with the words of torchrun. SLURM signals this shell, and with some
# of its plugins all that it has started. torchrun must outlive that: at SIGTERM it fails, at
# SIGUSR1 it dies. So it is started deaf to both, and this shell passes what it hears to the ranks,
# which are deaf as well until they can save themselves: they are told until they have ended.
on_machine() {
    local agent code heard=""
    trap 'heard=yes' USR1 TERM
    (
        trap '' USR1 TERM
        exec python -m torch.distributed.run --signals-to-handle SIGINT,SIGHUP,SIGQUIT \
            --rdzv-conf "is_host=$((SLURM_NODEID == 0))" "$@"
    ) &
    agent=$!
    # A signal breaks `wait` off. Once torchrun has ended, `wait` always gives its exit code.
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
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a machine need one each

srun_words=(--kill-on-bad-exit=0 --wait=0) # whoever ends first leaves the others time to save
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    srun_words+=(--cpus-per-task="$SLURM_CPUS_PER_TASK") # srun does not take it from the job
fi
torchrun_words=(
    --nnodes "$SLURM_JOB_NUM_NODES"
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}"
    --max-restarts "$restarts"
    --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
    --rdzv-backend c10d
    --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT"
)
# The other machines do not have this file: they get the function itself.
srun "${srun_words[@]}" bash -c "set -euo pipefail; $(declare -f on_machine); on_machine \"\$@\"" \
    on_machine "${torchrun_words[@]}" run_mtl.py "${words[@]}" -a &
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

# A job that was cancelled, or that SLURM puts back by itself, is not in the state RUNNING.
case $(scontrol show job "$SLURM_JOB_ID") in
    *JobState=RUNNING*)
        echo "The run was interrupted: job $SLURM_JOB_ID goes back into the queue."
        scontrol requeue "$SLURM_JOB_ID"
        ;;
    *)
        echo "The run was interrupted; what becomes of job $SLURM_JOB_ID is up to SLURM."
        exit "$INTERRUPTED"
        ;;
esac

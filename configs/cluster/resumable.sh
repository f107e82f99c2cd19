# shellcheck shell=bash
# For the scripts beside this one: `resumable COMMAND...` runs a command of Luthier in a Slurm job
# that may end before the command does.
#
# #SBATCH --signal=B:USR1@300 makes Slurm send USR1 to the batch shell, and to nothing else, 300
# seconds before the job's time is over (up to 60 seconds earlier, says the manual). The shell
# passes it on as TERM. Luthier finishes the step, seals a checkpoint and exits with 4, which says
# "the same command goes on"; the job is then queued again under the same id.
#
# USR1 and not TERM: TERM is what ends a job that is cancelled or preempted. A cancelled one must
# not come back, and Slurm itself queues a preempted one again (#SBATCH --requeue).

RESUMABLE_EXIT_CODE=4

resumable() {
    local child code=0 heard=0 time_is_over=0
    "$@" &
    child=$!
    trap 'heard=1; time_is_over=1; kill -TERM "$child" 2>/dev/null' USR1
    trap 'heard=1; kill -TERM "$child" 2>/dev/null' TERM
    # A trapped signal ends `wait` before the child has ended: wait again.
    while :; do
        heard=0
        wait "$child"
        code=$?
        [[ $heard == 1 ]] || break
    done
    if [[ $code == "$RESUMABLE_EXIT_CODE" && $time_is_over == 1 ]]; then
        # one task of an array is called ARRAY_TASK, not by its job id
        scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    fi
    return "$code"
}

#!/bin/bash
# Embeds proteins with every GPU of a Slurm allocation, by a Ray cluster that lives as long as it.
#
#   sbatch slurm.sh ARTIFACT PROTEINS OUTPUT/
#
# Paths on a file system that all nodes share; an environment with esm2-engines[onnx-gpu,parquet,ray]
# that all nodes see. After a time limit or a node's failure Slurm puts the job back (--requeue), and
# --resume goes on.
#SBATCH --job-name=esm2-embed
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
artifact=$1 proteins=$2 output=$3

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
# A port of this job's own: others may run on the same nodes.
address=${nodes[0]}:$((20000 + SLURM_JOB_ID % 10000))
# Who may reach the port may run code as you: Ray asks for this token. (umask: others cannot read.)
umask 077
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')

start() {  # NODE OPTION...
    srun --nodes=1 --ntasks=1 --overlap --nodelist="$1" ray start --block --disable-usage-stats \
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" "${@:2}" &
}

trap 'kill $(jobs -p); wait' EXIT
start "${nodes[0]}" --head --port="${address#*:}" --include-dashboard=false
until ray status --address "$address" &> /dev/null; do sleep 2; done
for node in "${nodes[@]:1}"; do
    start "$node" --address "$address"
done
# There are as many actors as the cluster has GPUs when the command begins.
python - "$address" "${#nodes[@]}" <<'PYTHON'
import sys, time
import ray

ray.init(address=sys.argv[1], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(1)
PYTHON

# 3: some records were rejected, and are listed in $output/_rejected.
status=0
esm2-run embed "$artifact" "$proteins" -o "$output" --resume --on-error skip --ray "$address" \
    || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 3 ]

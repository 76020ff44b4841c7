#!/bin/bash
# Train on one or more machines under Slurm:  sbatch --nodes 2 scripts/slurm.sh train_configs/minigpt4_flickr_finetune.yaml
# Submitted again after its time limit, or requeued, it resumes where it stopped. Output and features must be on a shared disk.
#SBATCH --job-name=captune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch [--nodes N] scripts/slurm.sh CONFIG [section.key=value ...]" >&2
    exit 2
fi

first_host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

# One torchrun a machine, which starts one process a GPU; --signal without "B:" goes to these and not to this script.
srun torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$first_host:${CAPTUNE_PORT:-29500}" \
    -m captune train "$@"

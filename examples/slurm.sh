#!/bin/bash
# Pretraining on two machines of eight GPUs under SLURM: sbatch examples/slurm.sh VIDEOS RUN [SETTINGS ...]
# One torchrun on each machine starts a process for each of its GPUs, or one process where it has none:
#   sbatch --gpus-per-node=0 --cpus-per-task=16 examples/slurm.sh VIDEOS RUN
# Given again, or queued again after a preemption, the same line continues from the last checkpoint. VIDEOS and RUN lie on a
# file system that all machines see.
#SBATCH --job-name=tubelet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=tubelet-%j.log

set -euo pipefail
videos=$1
run=$2
processes=${SLURM_GPUS_ON_NODE:-1}

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since SLURM 22.05 srun does not take it from sbatch
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / processes))
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # or restarted processes meet what the dead ones left
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# torchrun passes SLURM's SIGTERM on: every process finishes its step, rank 0 saves, and all end.
trap : TERM  # srun is told as well: wait for it
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$processes" --max-restarts 3 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
  -m tubelet pretrain "$videos" --out "$run" "${@:3}" && exit

# Preempted with a time of grace, the job has ended by itself before SLURM would queue it again.
if [[ "$(scontrol show job "$SLURM_JOB_ID")" == *PreemptTime=[0-9]* ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit 1

#!/bin/bash
# RINCE on ImageNet-100 under SLURM: two nodes of four GPUs, one task a GPU; goes on by itself after pre-emption and
# at the time limit. Options of main_supcon.py may follow: sbatch cluster/slurm.sh --exp_name mine
#SBATCH --job-name=rince
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@180
# USR1 reaches every task 180 seconds before the time limit: they save, and exit with 75

cd "$SLURM_SUBMIT_DIR" || exit 1
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

srun --kill-on-bad-exit=1 --wait=60 .venv/bin/python main_supcon.py \
    --dataset=imagenet --data_folder=./data/imagenet100/train --size=224 --model=resnet18 \
    --loss_type=rince --variant=out_in --ranking=roberta_threshold \
    --thresholds=0.4 --min_tau=0.1 --max_tau=0.6 --memorybank_size=8192 \
    --batch_size=768 --learning_rate=0.3 --cosine --epochs=500 --save_freq=100 --num_workers=10 \
    --exp_name="rince_imagenet100" --resume auto "$@"
status=$?

if [ "$status" -eq 75 ]; then # asked to stop, all saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

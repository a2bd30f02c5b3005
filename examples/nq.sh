#!/usr/bin/env bash
# Natural Questions as in Tevatron's guide, on one GPU by gradient caching. Further flags are passed on: ./nq.sh --bf16
# The data set (1.4 GB) and the model come from the Hugging Face hub. MODEL, DATA and OUT choose others.
set -euo pipefail

python -m fastdense.train \
  --output_dir "${OUT:-model_nq}" --dataset_name "${DATA:-Tevatron/wikipedia-nq}" \
  --model_name_or_path "${MODEL:-bert-base-uncased}" --do_train --save_steps 20000 \
  --per_device_train_batch_size 128 --train_n_passages 2 --learning_rate 1e-5 --q_max_len 32 --p_max_len 156 \
  --num_train_epochs 40 --grad_cache "$@"

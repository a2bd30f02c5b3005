#!/usr/bin/env bash
# Natural Questions on a TPU VM (v3-8: 8 devices of 16 queries each). Not yet run on a TPU. On a machine without one:
#   JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 MODEL=... ./tpu.sh --max_steps 10
# On a pod, start it on every host with --jax_coordinator_address auto.
set -euo pipefail

python -m fastdense.jax_train \
  --output_dir "${OUT:-model_nq}" --dataset_name "${DATA:-Tevatron/wikipedia-nq}" \
  --model_name_or_path "${MODEL:-bert-base-uncased}" --do_train \
  --per_device_train_batch_size 16 --train_n_passages 2 --learning_rate 1e-5 --q_max_len 32 --p_max_len 156 \
  --num_train_epochs 40 --bf16 "$@"

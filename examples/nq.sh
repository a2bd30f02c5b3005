#!/usr/bin/env bash
# Natural Questions as in Tevatron's guide, on one GPU by gradient caching: training, 21 million passages encoded (in
# float32, 65 GB below OUT/emb), search, and the share of test questions whose answer is in the best 20 and 100.
# The data sets and the model come from the Hugging Face hub; MODEL, DATA, CORPUS and OUT choose others. Flags behind the
# script's name go to the training: ./nq.sh --bf16. A killed encode goes on where it was.
set -euo pipefail
MODEL="${MODEL:-bert-base-uncased}" DATA="${DATA:-Tevatron/wikipedia-nq}" CORPUS="${CORPUS:-Tevatron/wikipedia-nq-corpus}"
OUT="${OUT:-model_nq}"

python -m fastdense.train \
  --output_dir "$OUT" --dataset_name "$DATA" --model_name_or_path "$MODEL" --do_train --save_steps 20000 \
  --per_device_train_batch_size 128 --train_n_passages 2 --learning_rate 1e-5 --q_max_len 32 --p_max_len 156 \
  --num_train_epochs 40 --grad_cache "$@"
python -m fastdense.encode --model_name_or_path "$OUT" --dataset_name "$CORPUS" --per_device_eval_batch_size 156 \
  --encoded_save_path "$OUT/emb/corpus.npy" --encode_rows_per_shard 1000000
python -m fastdense.encode --model_name_or_path "$OUT" --dataset_name "$DATA/test" --encode_is_qry --per_device_eval_batch_size 156 \
  --encoded_save_path "$OUT/emb/queries.npy"
python -m fastdense.search --query_reps "$OUT/emb/queries.npy" --passage_reps "$OUT/emb/corpus-*.npy" --depth 100 \
  --save_ranking_to "$OUT/run.nq.test.txt" --save_text
python "$(dirname "$0")/nq_answers.py" "$OUT/run.nq.test.txt" "$DATA/test" "$CORPUS"

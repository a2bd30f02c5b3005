#!/usr/bin/env bash
# From your own files to measured search results. Flags behind the script's name go to the training.
#   ROWS     training rows: {"query": ..., "positive_passages": [{"title": ..., "text": ...}], "negative_passages": [...]}
#   HELD_OUT a directory with corpus.jsonl, queries.jsonl and qrels.txt
set -euo pipefail
MODEL="${MODEL:-bert-base-uncased}" ROWS="${ROWS:-rows.jsonl}" HELD_OUT="${HELD_OUT:-held_out}" OUT="${OUT:-my_retriever}"

python -m fastdense.train \
  --output_dir "$OUT" --model_name_or_path "$MODEL" --do_train --train_dir "$ROWS" --train_n_passages 2 \
  --pooling mean --normalize --temperature 0.05 --mask_duplicates --grad_cache --per_device_train_batch_size 256 \
  --learning_rate 2e-5 --num_train_epochs 3 --eval_strategy epoch --save_strategy epoch --eval_dir "$HELD_OUT" \
  --load_best_model_at_end "$@"
python -m fastdense.encode --model_name_or_path "$OUT" --encode_in_path "$HELD_OUT/corpus.jsonl" --encoded_save_path "$OUT/emb/corpus.npy"
python -m fastdense.encode --model_name_or_path "$OUT" --encode_in_path "$HELD_OUT/queries.jsonl" --encode_is_qry --encoded_save_path "$OUT/emb/queries.npy"
python -m fastdense.search --query_reps "$OUT/emb/queries.npy" --passage_reps "$OUT/emb/corpus.npy" --depth 100 --save_ranking_to "$OUT/run.txt" --save_text
python -m fastdense.evaluate --qrels "$HELD_OUT/qrels.txt" --run "$OUT/run.txt"

"""Flags that people bring along from other programs and older libraries, and what has become of them."""

# Flags of Tevatron's shared argument classes that belong to another command of ours.
ELSEWHERE = {
    "encode_in_path": "fastdense.encode",
    "encoded_save_path": "fastdense.encode",
    "encode_is_qry": "fastdense.encode",
    "encode_num_shard": "fastdense.encode",
    "encode_shard_index": "fastdense.encode",
    "dtype": "fastdense.jax_train",
}

RENAMED = {
    # Hugging Face TrainingArguments before 5
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "torchdynamo": "torch_compile_backend",
    "xpu_backend": "ddp_backend",
    # Tevatron 2 and its like
    "train_group_size": "train_n_passages",
    "query_max_len": "q_max_len",
    "passage_max_len": "p_max_len",
    "dataset_path": "train_dir",
    "dataset_cache_dir": "data_cache_dir",
    # FlagEmbedding
    "train_data": "train_dir",
    "negatives_cross_device": "negatives_x_device",
    "sentence_pooling_method": "pooling",
    "normalize_embeddings": "normalize",
    "query_instruction_for_retrieval": "query_prefix",
    "negative_number": "num_negatives",
    # the field's short names
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
}

_ONE_HALF_PRECISION = "half precision is torch's own, under --fp16 or --bf16: leave it out"

GONE = {
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR instead",
    "save_safetensors": "weights are always saved as safetensors: leave it out",
    "group_by_length": "chunks of --grad_cache are planned by length anyway: leave it out",
    "adafactor": "it is now --optim adafactor",
    "fp16_backend": _ONE_HALF_PRECISION,
    "fp16_opt_level": _ONE_HALF_PRECISION,
    "half_precision_backend": _ONE_HALF_PRECISION,
    "sharded_ddp": "training shards nothing: start with torchrun (DDP)",
    "evaluate_during_training": "it is now --eval_strategy steps",
    "include_tokens_per_second": "examples_per_second is in the log: leave it out",
    "include_inputs_for_metrics": "retrieval metrics need no flag: leave it out",
    "dispatch_batches": "every process reads its own rows: leave it out",
    "split_batches": "every process reads its own rows: leave it out",
    "append_eos_token": "the tokenizer must add the token itself, as for --pooling last: leave it out",
    "sub_batch_size": "use --grad_cache, which keeps the negatives of the whole batch",
    "range_for_sampling": "it is now --range_min and --range_max of python -m fastdense.mine",
    "tpu_num_cores": "TPUs are for python -m fastdense.jax_train",
}

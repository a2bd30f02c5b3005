"""Rows, sampling, tokenization and batches for training."""

"""Flax encoders whose parameters have the names and shapes of the Hugging Face checkpoints they come from."""

"""Implementations of the contrastive loss. They never import one another."""

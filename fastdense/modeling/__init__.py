"""Encoders: a backbone, pooling, a projection and normalization; how they are loaded and saved."""

"""The same stages for JAX, on CPUs, GPUs and TPUs: nothing is imported here."""

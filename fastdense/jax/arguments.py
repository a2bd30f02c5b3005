"""The flags of the JAX driver: the torch driver's, with some that only JAX has and some refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import jax

from fastdense.jax.optimizer import check_optimizer
from fastdense.jax.processes import check_all_known, join_processes
from fastdense.training.arguments import RetrieverTrainingArguments

_TORCH = "it is a setting of PyTorch, and the step is JAX's"
_SHARDING = "rows are divided over all devices, parameters are not: leave it out"
_DDP = "gradients are summed by JAX's own program: leave it out"
_OPTIMIZER = "the optimizer is optax's: leave it out"
_REMAT = "use --grad_cache, which keeps the activations of one chunk"

_REFUSED = {
    "fp16": "TPUs have no float16: use --bf16, which needs no loss scaling either",
    "tf32": "set the environment variable JAX_DEFAULT_MATMUL_PRECISION instead",
    "dry_run": "the plan is that of fastdense.train",
    "torch_compile": "the step is always compiled, by XLA: leave it out",
    "torch_compile_backend": "the step is always compiled, by XLA: leave it out",
    "torch_compile_mode": "the step is always compiled, by XLA: leave it out",
    "torch_empty_cache_steps": _TORCH,
    "full_determinism": "CPUs and TPUs give the same bits anyway, GPUs with XLA_FLAGS=--xla_gpu_deterministic_ops=true",
    "logging_nan_inf_filter": "losses stay on the devices until they are logged, so none can be filtered",
    "optim_args": _OPTIMIZER,
    "optim_target_modules": _OPTIMIZER,
    "gradient_checkpointing": _REMAT,
    "gradient_checkpointing_kwargs": _REMAT,
    "activation_checkpointing": _REMAT,
    "activation_checkpointing_kwargs": _REMAT,
    "fsdp": _SHARDING,
    "fsdp_config": _SHARDING,
    "deepspeed": _SHARDING,
    "parallelism_config": _SHARDING,
    "ddp_backend": _DDP,
    "ddp_bucket_cap_mb": _DDP,
    "ddp_broadcast_buffers": _DDP,
    "ddp_find_unused_parameters": _DDP,
    "ddp_static_graph": _DDP,
}


@dataclass
class JaxTrainingArguments(RetrieverTrainingArguments):
    """The torch driver's arguments for devices that JAX sees; ``per_device`` is per device of JAX's."""

    dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "What the model computes in; parameters stay float32. --bf16 is bfloat16."}
    )

    jax_coordinator_address: str | None = field(
        default=None,
        metadata={
            "help": "Beyond one host, on every host: HOST:PORT of the first process, or auto on TPU pods and under "
            "Slurm or MPI."
        },
    )
    jax_num_processes: int | None = field(default=None, metadata={"help": "Number of processes, unless auto."})
    jax_process_id: int | None = field(default=None, metadata={"help": "Which one this is, from 0, unless auto."})

    _argument_group_name = RetrieverTrainingArguments._argument_group_name
    _refused: ClassVar[Mapping[str, str]] = _REFUSED

    def __post_init__(self) -> None:
        self.keep_given()
        if self.use_cpu:
            jax.config.update("jax_platforms", "cpu")
        if self.bf16:
            self.dtype, self.bf16 = "bfloat16", False
        self.use_cpu = True  # PyTorch's part, which only reads, saves and counts; JAX takes the accelerators
        self.dataloader_pin_memory = False  # memory pinned by PyTorch is no faster for JAX
        if self.dataloader_num_workers and self.dataloader_multiprocessing_context is None:
            self.dataloader_multiprocessing_context = "forkserver"  # JAX has threads, which a fork would tear apart
        super().__post_init__()

    @cached_property
    def _setup_devices(self) -> Any:
        """PyTorch's processes, which are JAX's."""
        join_processes(self.jax_coordinator_address, self.jax_num_processes, self.jax_process_id)
        return super()._setup_devices

    def _check(self) -> None:
        super()._check()
        check_optimizer(self)

    @property
    def train_batch_size(self) -> int:
        """Rows of this process in a batch."""
        check_all_known(self.world_size)
        return self.per_device_train_batch_size * jax.local_device_count()

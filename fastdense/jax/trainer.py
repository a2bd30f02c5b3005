"""The torch driver's trainer with JAX's step: the loop, the schedules, the log and the checkpoints are the same."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from fastdense.jax.arguments import JaxTrainingArguments
from fastdense.jax.batches import bucket, pad_batch
from fastdense.jax.encode import TextEncoder
from fastdense.jax.encoder import JaxRetriever
from fastdense.jax.grad_cache import Params
from fastdense.jax.mesh import divide_rows, local_copy, local_part, make_mesh, replicate
from fastdense.jax.optimizer import JaxOptimizer, make_transformation
from fastdense.jax.train_step import GradientStep, Moment, StepSettings, Tally
from fastdense.modeling.encoder import Retriever
from fastdense.retrieval.encode import TextTokenizer
from fastdense.retrieval.texts import Text
from fastdense.training.evaluation import Side
from fastdense.training.linear_choice import LinearChoice
from fastdense.training.trainer import RetrieverTrainer


class JaxTrainer(RetrieverTrainer):
    """Trains a retriever's weights on the devices of JAX.

    The retriever itself stays on the host: weights come from it when training begins, and go back into it before they
    are saved. Its arguments are :class:`RetrieverTrainer`'s; ``step`` is a :class:`StepSettings`.
    """

    kept_on_resume = ("learning_rate",)  # optax has all else from the flags

    def __init__(self, retriever: Retriever, args: Any, step: StepSettings, **parts: Any) -> None:
        super().__init__(retriever, args, step, **parts)  # type: ignore[arg-type]
        retriever.requires_grad_(False)  # nothing is computed in it
        self.remove_callback(LinearChoice)
        self.add_callback(_RowsOfADevice())
        # ... and no gradients of its are exchanged between processes
        retriever._is_accelerate_prepared = True  # type: ignore[assignment]
        self.mesh = make_mesh()
        # Without weights: those of the beginning would stay on a device to the end.
        self.encoder = dataclasses.replace(JaxRetriever.from_torch(retriever, jnp.dtype(args.dtype)), params={})
        self.gradient_step = GradientStep(self.encoder, step, self.mesh)
        self._encode_texts = TextEncoder(
            self.encoder, local_part(self.mesh), args.per_device_eval_batch_size, retriever.query_encoder.dimension
        )
        self._tally = self._nothing()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Weights go to the devices here: a checkpoint to resume from has been loaded by now."""
        if self.optimizer is None:
            transformation = make_transformation(self.args, self._decays())
            learning_rate, norm = self.args.learning_rate, self.args.max_grad_norm
            self.optimizer = JaxOptimizer(self._weights(), transformation, learning_rate, norm)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: object = None) -> Tensor:
        """Queue a batch's gradients on the devices. The loss returned is 0: the tally is added when one looks at it."""
        moment = Moment(
            seed=np.uint32(self.args.seed),
            step=np.int32(self.state.global_step),
            part=np.int32(self.optimizer.parts),
            share=np.float32(1 / self.current_gradient_accumulation_steps),
        )
        self._tally, gradients = self.gradient_step(
            self.optimizer.params, self._on_devices(inputs), moment, self._tally, self.optimizer.gradients
        )
        self.optimizer.accumulate(gradients)
        self._queries += len(inputs["target"])
        self._steps_since_log += 1
        return torch.zeros(())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the norm of the last step's gradients."""
        if "loss" in logs:
            logs["grad_norm"] = float(self.optimizer.grad_norm)
        super().log(logs, start_time)

    def encode_texts(self, side: Side, tokenize: TextTokenizer, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Held-out texts to vectors with the weights as they are now."""
        params = local_copy(self.optimizer.params, local_part(self.mesh))
        return self._encode_texts(params, side, tokenize, texts)

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, *rest: Any, **named: Any) -> None:
        stops = self.control.should_training_stop or self.control.should_epoch_stop
        if self.control.should_log or stops or float(self.state.epoch or 0).is_integer():
            tr_loss += self._counted()
        super()._maybe_log_save_evaluate(tr_loss, *rest, **named)

    def _counted(self) -> float:
        """The loss since the last call; waits for the devices."""
        loss, accuracy = map(float, self._tally)
        self._accuracy_sum = self._accuracy_sum + accuracy
        self._tally = self._nothing()
        return loss

    def _nothing(self) -> Tally:
        zero = np.float32(0)
        return replicate(Tally(zero, zero), self.mesh)

    def _on_devices(self, inputs: dict[str, Any]) -> Any:
        """A batch of the collator's, padded to one of the run's shapes and divided over the devices."""
        collator, rows = self.data_collator, self.args.train_batch_size
        lengths = torch.tensor([[inputs[side]["input_ids"].shape[1] for side in ("query", "passage")]])
        query, passage = self.accelerator.gather(lengths).amax(dim=0).tolist()  # all processes run one program
        batch = pad_batch(
            inputs,
            (bucket(query, collator.q_max_len), bucket(passage, collator.p_max_len)),
            query_rows=rows,
            passage_rows=rows * self.train_dataset.n_passages,
            pad_id=collator.pad_id,
            process_index=self.args.process_index,
        )
        return divide_rows(batch, self.mesh)

    def _weights(self) -> Params:
        return replicate(JaxRetriever.from_torch(self.model).params, self.mesh)

    def _decays(self) -> Params:
        """Which parameters decay, by the library's rule for the names of PyTorch's."""
        names = set(self.get_decay_parameter_names(self.model))
        module = {"shared": "query_encoder", "query": "query_encoder", "passage": "passage_encoder"}
        weights = JaxRetriever.from_torch(self.model).params
        return {tower: {name: f"{module[tower]}.{name}" in names for name in own} for tower, own in weights.items()}

    def _clip_grad_norm(self, model: nn.Module) -> None:
        return None  # the optimizer's step does

    def _get_grad_norm(self, model: nn.Module, grad_norm: object = None) -> None:
        return None  # the log asks for it

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        self.encoder.to_torch(self.optimizer.params, self.model)
        super()._save(output_dir, state_dict)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.optimizer.params = self._weights()


class _RowsOfADevice(TrainerCallback):
    """Corrects the state's batch size, with which the library compares ``per_device_train_batch_size`` on resuming.

    It would have the rows of the process and divide them by PyTorch's devices, of which there are none here.
    """

    def on_train_begin(
        self, args: JaxTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.train_batch_size = args.per_device_train_batch_size

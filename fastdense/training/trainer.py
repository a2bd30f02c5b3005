"""The Hugging Face ``Trainer`` with a contrastive step, retrieval metrics and a log that says what matters."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ProgressCallback

from fastdense.data.source_mix import SourceMix
from fastdense.data.streaming import StreamedSet
from fastdense.modeling.encoder import Retriever
from fastdense.modeling.settings import RetrieverSettings
from fastdense.retrieval.encode import TextTokenizer, autocast_dtype, encode_texts
from fastdense.retrieval.texts import Text
from fastdense.training.arguments import RetrieverTrainingArguments
from fastdense.training.checkpoints import CheckpointingTrainer
from fastdense.training.evaluation import HeldOutSets, Side
from fastdense.training.linear_choice import LinearChoice, may_choose
from fastdense.training.progress import ProgressBar
from fastdense.training.step import ContrastiveStep
from fastdense.training.whole_log import WholeLog, mean_loss


class RetrieverTrainer(CheckpointingTrainer):
    """Trains a :class:`Retriever`.

    Args:
        retriever: the model; it is trained in place.
        args: the training arguments.
        step: turns the model and a batch of ``collator`` into loss and accuracy.
        train_dataset: rows; its ``set_epoch`` chooses each epoch's positives and negatives.
        collator: examples to the batch that ``step`` takes.
        tokenizer: saved with the model.
        settings: what a reader of the saved directory must know about pooling, prefixes and lengths.
        held_out: the sets that ``--eval_strategy`` measures.
    """

    def __init__(
        self,
        retriever: Retriever,
        args: RetrieverTrainingArguments,
        step: ContrastiveStep,
        *,
        train_dataset: Dataset,
        collator: Any,
        tokenizer: PreTrainedTokenizerBase,
        settings: RetrieverSettings,
        held_out: HeldOutSets | None = None,
    ) -> None:
        self._whole_log = WholeLog()
        super().__init__(
            model=retriever,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=held_out,
            processing_class=tokenizer,
            callbacks=[_EpochOfTheData(train_dataset), self._whole_log],
        )
        self.settings = settings
        self.step = step
        self.held_out = held_out
        self.model_accepts_loss_kwargs = False  # ours is a mean over queries: accumulation divides it
        self._accuracy_sum: Tensor | float = 0.0  # stays on the device between two logs
        self._queries = 0
        self._tokens = 0
        self._padded_tokens = 0
        self._steps_since_log = 0
        self._waited = 0.0
        self._last_log = time.perf_counter()
        if may_choose(args):
            self.add_callback(LinearChoice())
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(ProgressBar())

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Several data sets have an order of their own, whose blocks are the batches of all processes."""
        if not isinstance(self.train_dataset, SourceMix):
            return super()._get_train_sampler(train_dataset)
        return self.train_dataset.sampler(self.args.train_batch_size * self.args.world_size)

    def get_train_dataloader(self) -> DataLoader:
        """A stream divides its rows over processes itself: the stock loader would hand out each batch in parts."""
        if not isinstance(self.train_dataset, StreamedSet):
            return super().get_train_dataloader()
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
            pin_memory=self.args.dataloader_pin_memory,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
        )

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """The batches of a step. What this takes the step waits for."""
        started = time.perf_counter()
        batches = super().get_batch_samples(*arguments, **named)
        self._waited += time.perf_counter() - started
        return batches

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The mean loss over this rank's queries; its backward gives this rank's share of every gradient."""
        result = self.step(model, inputs)
        self._accuracy_sum = self._accuracy_sum + result.accuracy
        self._queries += len(inputs["target"])
        self._tokens += result.tokens
        self._padded_tokens += result.padded_tokens
        self._steps_since_log += 1
        return result.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy, queries per second and the shares of padding and waiting to every line that reports a loss."""
        if "loss" in logs and self._steps_since_log:
            mean = torch.as_tensor(self._accuracy_sum, device=self.args.device) / self._steps_since_log
            logs["accuracy"] = self.accelerator.gather(mean.reshape(1)).mean().item()
            elapsed = time.perf_counter() - self._last_log
            logs["examples_per_second"] = round(self._queries * self.args.world_size / elapsed, 1)
            if self._padded_tokens:
                logs["padding"] = round(1 - self._tokens / self._padded_tokens, 4)  # of this process
            logs["data_wait"] = round(self._waited / elapsed, 4)  # of this process
            self._accuracy_sum, self._queries, self._steps_since_log = 0.0, 0, 0
            self._waited = 0.0
            self._tokens = self._padded_tokens = 0
            self._last_log = time.perf_counter()
        if "train_loss" in logs:
            self._mean_over_all_steps(logs)
        super().log(logs, start_time)

    def _mean_over_all_steps(self, logs: dict[str, float]) -> None:
        """The library's mean is over the steps of this process, which may have resumed the run."""
        began_at = self._whole_log.began_at
        mean = mean_loss(self.state.log_history, began_at, self.state.global_step)
        if mean is not None:
            logs["train_loss"] = mean
        elif began_at:  # what came before was not logged
            del logs["train_loss"]

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: object = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Retrieval metrics on the held-out sets, under ``eval_<metric>`` (see
        :meth:`fastdense.training.evaluation.HeldOutSets.measure`); every rank encodes its share."""
        with self._clock_stopped():
            metrics = self._measure(metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measure(self, prefix: str) -> dict[str, float]:
        assert self.held_out is not None
        started = time.perf_counter()
        measured = self.held_out.measure(self.encode_texts, self.accelerator)
        metrics = {f"{prefix}_{name}": value for name, value in measured.items()}
        return {**metrics, f"{prefix}_runtime": round(time.perf_counter() - started, 4)}

    def encode_texts(self, side: Side, tokenize: TextTokenizer, texts: Sequence[Text]) -> NDArray[np.float32]:
        """Held-out texts to vectors with the model as it is now."""
        return encode_texts(
            self.model.query_encoder if side == "query" else self.model.passage_encoder,
            tokenize,
            texts,
            batch_size=self.args.per_device_eval_batch_size,
            precision=autocast_dtype(self.args.fp16, self.args.bf16, self.args.device),
        )

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        with self._clock_stopped():
            super()._save_checkpoint(model, trial)

    @contextlib.contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """``examples_per_second`` is about training, not about measuring and saving."""
        started = time.perf_counter()
        yield
        self._last_log += time.perf_counter() - started


class _EpochOfTheData(TrainerCallback):
    """Tells the data set which epoch begins: v1 rotates positives and negatives by it."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def on_epoch_begin(
        self, args: RetrieverTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._dataset.set_epoch(int(state.epoch or 0))

"""Which library makes the products of float32 linear layers on this CPU: measured before the first step.

oneDNN is twice as fast as torch's own library on a Zen 5 and a tenth faster on a Zen 4, which is too little to choose
it, and slower on a Zen 3 and on Intel's Xeons. Its sums differ in their last bits, so a run that goes on from a
checkpoint keeps to the choice that it was started with.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from fastdense.training.linears import Library, Product, large_layers, onednn_missing, products, use_onednn

logger = logging.getLogger(__name__)

Key = TypeVar("Key")

_TOKENS = 1024  # of a chunk, by default
_MOST_SHAPES = 3  # those with the most operations
_TURNS = (3, 9)
_SECONDS = 2.0  # that more than the least number of turns may take
# A tenth, as on a Zen 4, is 2 % of a step, and oneDNN keeps the kernels of every shape of chunk: 50 MiB and more.
_LEAST_GAIN = 1.25


def timed(
    ways: Mapping[Key, Callable[[], object]], least: int, most: int, seconds: float = 0.0
) -> dict[Key, list[float]]:
    """The seconds that each of several ways took in its turns: ``least``, and up to ``most`` while ``seconds`` last."""
    samples: dict[Key, list[float]] = {key: [] for key in ways}
    end = time.perf_counter() + seconds
    for turn in range(most + 1):
        for key, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first one warms up
                samples[key].append(time.perf_counter() - start)
        if turn >= least and time.perf_counter() > end:
            break
    return samples


def gains(shapes: Counter[tuple[int, int]]) -> dict[Product, float]:
    """How many times as fast oneDNN makes each product as torch's own library, in layers of ``{(inner, outer): how
    many}``; of the quickest of several turns: other programs' work only slows one."""
    ways = {
        (shape, product, library): way
        for shape in shapes
        for product, own in products(_TOKENS, *shape).items()
        for library, way in own.items()
    }
    seconds: dict[tuple[Product, Library], float] = {}
    for (shape, product, library), own in timed(ways, *_TURNS, _SECONDS).items():
        seconds[product, library] = seconds.get((product, library), 0.0) + shapes[shape] * min(own)
    return {product: seconds[product, "torch"] / seconds[product, "oneDNN"] for product, _ in seconds}


def measured_gains(model: nn.Module) -> dict[Product, float]:
    """:func:`gains` in the layers of a model that take most of its time; nothing for a model that has none."""
    shapes = Counter((layer.in_features, layer.out_features) for layer in large_layers(model))
    largest = sorted(shapes, key=lambda shape: shape[0] * shape[1] * shapes[shape])[-_MOST_SHAPES:]
    return gains(Counter({shape: shapes[shape] for shape in largest}))


def worth_it(measured: dict[Product, float]) -> list[Product]:
    """The products that oneDNN is to make."""
    return [product for product, gain in measured.items() if gain >= _LEAST_GAIN]


def may_choose(args: TrainingArguments) -> bool:
    """Whether a run with these flags has products that oneDNN could make, and leave to chance which bits it gets."""
    other_products = args.device.type != "cpu" or args.bf16 or args.fp16 or args.torch_compile
    return not (other_products or args.full_determinism or onednn_missing())


class LinearChoice(TrainerCallback, ExportableState):
    """Chooses before the first step, for all ranks, and says so in the log; checkpoints have the choice."""

    def __init__(self, chosen: list[Product] | None = None) -> None:
        self.chosen = chosen

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, in its trainer_state.json."""
        return {"args": {"chosen": self.chosen}, "attributes": {}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure, unless the checkpoint that the run goes on from says what to choose."""
        kept = state.stateful_callbacks.get(type(self).__name__, self.state())["args"]["chosen"]
        self.chosen = self._choose(kwargs["model"], state.is_world_process_zero) if kept is None else kept
        use_onednn(kwargs["model"], self.chosen)

    def _choose(self, model: nn.Module, tells: bool) -> list[Product]:
        measured = measured_gains(model)
        chosen: list[Product] = broadcast_object_list([worth_it(measured)])[0]
        if measured and tells:
            logger.info(_sentence(measured, chosen))
        return chosen


def _sentence(measured: dict[Product, float], chosen: Sequence[Product]) -> str:
    found = ", ".join(f"{product} {gain:.2f}" for product, gain in measured.items())
    what = f"oneDNN makes the {' and the '.join(chosen)} of" if chosen else "torch's own library makes all products of"
    return f"{what} linear layers (oneDNN's speed over that of torch's own library: {found})"

"""Which collectives of torch.distributed a piece of work calls, DistributedDataParallel's from C++ among them."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

# Of a batch: the numbers of rows, ids and passages of all ranks; the passages' gradients to their owners, as an
# all-to-all and a sum. Of an optimizer step: one reduction of all gradients.
EXCHANGE = {"_allgather_base_": 3, "alltoall_base_": 1}
REDUCTION = {"allreduce_": 1}


def collectives_of(work: Callable[[], object]) -> dict[str, int]:
    """How often ``work`` calls each operator of ``torch.ops.c10d``."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        work()
    events = {event.key: event.count for event in recorded.key_averages()}
    return {name.removeprefix("c10d::"): count for name, count in events.items() if name.startswith("c10d::")}

"""W gloo processes against one process over the global batch. ``worker.py`` is what each of them runs."""

import json
import re
import signal
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import forked
import pytest
import torch
from collectives import EXCHANGE, REDUCTION

from fastdense.distributed import PassageExchange

pytestmark = pytest.mark.distributed

COMPARED = [
    f"{path}-{encoders}-{rows}"
    for path in ("plain", "cached")
    for encoders in ("tied", "untied")
    for rows in ("even", "uneven")
] + ["cached-untied-uneven-accumulated", "plain-tied-uneven-accumulated", "cached-untied-uneven-unused"]
COMPARED += [
    "cached-tied-one-uneven",
    "cached-tied-one-uneven-kept",
    "cached-untied-uneven-kept",
    "cached-tied-one-even-kept-accumulated",
    "cached-untied-even-kept-unused",
]
COUNTED = ["collectives-plain", "collectives-cached"]
OBJECTIVES = [
    "objectives-plain-untied-uneven",
    "objectives-cached-tied-uneven-guided",
]  # import more: two ranks are enough
CASES = [*COMPARED, *COUNTED, "exchange", "empty-rank", "forward-alone-in-no-sync"]
Results = list[dict[str, dict]]


def start_ranks(world: int, directory: Path, cases: list[str]) -> list[ForkServerProcess]:
    environment = {"GLOO_SOCKET_IFNAME": "lo"}
    worker = Path(__file__).with_name("worker.py")
    return [
        forked.start([worker, rank, world, directory, *cases], log=log_of(directory, rank), environment=environment)
        for rank in range(world)
    ]


def log_of(directory: Path, rank: int) -> Path:
    return directory / f"{rank}.log"


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)], ids="{} ranks".format)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """What each rank found in each case."""
    directory = tmp_path_factory.mktemp("ranks")
    ranks = start_ranks(request.param, directory, [*CASES, *OBJECTIVES] if request.param == 2 else CASES)
    statuses = forked.end_all(ranks, seconds=180)
    assert statuses == [0] * len(ranks), "\n".join(log_of(directory, rank).read_text() for rank in range(len(ranks)))
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(len(ranks))]


@pytest.mark.parametrize("case", COMPARED)
def test_ranks_take_the_step_of_one_process_over_the_global_batch(results, case):
    for result in results:
        assert result[case]["error"] < 1e-6
        for mean, expected in result[case]["losses"]:
            assert mean == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("results", [2], ids="{} ranks".format, indirect=True)
@pytest.mark.parametrize("case", OBJECTIVES)
def test_so_they_do_with_prefixes_a_filter_and_a_teacher(results, case):
    for result in results:
        assert result[case]["error"] < 1e-9
        for mean, expected in result[case]["losses"]:
            assert mean == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("case", COMPARED)
def test_gradients_are_reduced_once_a_step(results, case):
    for result in results:
        assert result[case]["reductions"] == [result[case]["parameters"]] * 2


@pytest.mark.parametrize("case", COUNTED)
def test_the_only_collectives_are_the_exchange_and_one_reduction(results, case):
    expected = {"accumulated": EXCHANGE, "last": EXCHANGE | REDUCTION}
    assert [result[case] for result in results] == [expected] * len(results)


def test_a_forward_pass_inside_no_sync_reduces_nothing(results):
    assert [result["forward-alone-in-no-sync"]["reductions"] for result in results] == [[]] * len(results)


def test_passages_come_in_rank_order_and_gradients_return_to_their_owner(results):
    world = len(results)
    rows = [2, 5, 3][:world]
    gathered = torch.cat([torch.arange(count * 2.0).view(-1, 2) + 100 * rank for rank, count in enumerate(rows)])
    summed = torch.arange(sum(rows) * 2.0).view(-1, 2) * sum(10**rank for rank in range(world))
    for rank, result in enumerate(results):
        found = result["exchange"]
        offset = sum(rows[:rank])
        assert found["passage_rows"] == rows
        assert found["offset"] == offset
        assert found["loss_weight"] == pytest.approx((rows[rank] + 1) * world / (sum(rows) + world))
        assert found["gathered"] == gathered.tolist()
        assert found["half"] == gathered.bfloat16().float().tolist()
        assert found["ids"] == [owner for owner, count in enumerate(rows) for _ in range(count)]
        assert found["returned"] == summed[offset : offset + rows[rank]].tolist()


def test_a_rank_without_queries_is_named_on_every_rank(results):
    expected = "every rank needs queries and passages, rank 1 has 0 and 4"
    assert [result["empty-rank"] for result in results] == [{"message": expected}] * len(results)


@pytest.mark.parametrize(
    "case", [pytest.param("killed-before-exchange", marks=pytest.mark.slow), "killed-before-reduction"]
)
def test_a_killed_rank_ends_the_other_with_an_error(tmp_path, case):
    dead, survivor = forked.end_all(reversed(start_ranks(2, tmp_path, [case])), seconds=20)
    assert dead == -signal.SIGKILL
    # The exception's own status is 1; gloo's threads may abort the interpreter while it shuts down after it.
    assert survivor in (1, -signal.SIGABRT)
    printed = log_of(tmp_path, 0).read_text()
    assert re.search(r"RuntimeError.*(closed by peer|reset by peer)", printed), printed


def test_without_a_process_group_there_is_nothing_to_share():
    with pytest.raises(RuntimeError, match="needs a process group: start with torchrun"):
        PassageExchange(4, 4, torch.device("cpu"))

"""The kernels of csrc/cuda/exponentials.cuh, compiled for this CPU on a machine that emulates a GPU's lanes.

Their indices, masks, tails, barriers and waits are what runs here, against float64; only the instructions behind
tests/loss/emulation/machine.h and hopper.h are not a GPU's.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastdense.loss.implementations import native
from fastdense.loss.problem import make_problem

ROOT = Path(__file__).parent.parent.parent
COMPILER = shutil.which("c++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def structure(*fields):
    """Of pointers, and of numbers where a type is given."""
    names = [field if isinstance(field, tuple) else (field, ctypes.c_void_p) for field in fields]
    return type("Structure", (ctypes.Structure,), {"_fields_": names})


INT, LONG = ctypes.c_int, ctypes.c_int64
STRIDES = ("query_stride", LONG), ("passage_stride", LONG)
# As in csrc/cuda/chunk.h.
Chunk = structure(
    "query", "passage", *STRIDES, ("rows", INT), ("columns", INT), ("width", INT), "target", "label", "scale"
)
RowMaxima = structure("wanted", "maxima", "sums")
ExponentialResults = structure("offset", "reference", "stored", ("stride", LONG), "target_score", "partials")
Smoothing = structure("stored", ("stride", LONG), "gain", "share")


def pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


class Emulation:
    """The three operators; ``late`` and ``falling`` choose when copies arrive and which threads go first."""

    def __init__(self, library, product):
        self.library = library
        self.product = product
        self.late = self.falling = False
        self.bank_conflicts = 0
        self.maxima_wanted = []

    def run(self, kernel, chunk, results):
        conflicts = getattr(self.library, kernel)
        conflicts.restype = ctypes.c_long
        flags = ctypes.c_bool(self.late), ctypes.c_bool(self.falling)
        self.bank_conflicts += conflicts(ctypes.byref(chunk), ctypes.byref(results), *flags)

    def chunk(self, query, passage, target, label, scale):
        sizes = query.stride(0), passage.stride(0), query.shape[0], passage.shape[0], query.shape[1]
        return Chunk(pointer(query), pointer(passage), *sizes, pointer(target), pointer(label), pointer(scale))

    def score_exponentials(self, *arguments):
        *chunk, offset, reference, stored, target_score, partials = arguments
        results = ExponentialResults(
            pointer(offset), pointer(reference), pointer(stored), stored.stride(0), pointer(target_score),
            pointer(partials),
        )  # fmt: skip
        self.run(f"{self.product}_exponentials", self.chunk(*chunk), results)

    def score_maxima(self, *arguments):
        *chunk, wanted, partials = arguments
        self.maxima_wanted.append(wanted.tolist())
        results = RowMaxima(pointer(wanted), pointer(partials[0]), pointer(partials[1]))
        self.run(f"{self.product}_row_maxima", self.chunk(*chunk), results)

    def smooth_exponentials(self, stored, target, label, gain, share):
        chunk = Chunk(rows=stored.shape[0], columns=stored.shape[1], target=pointer(target), label=pointer(label))
        self.run("smoothing", chunk, Smoothing(pointer(stored), stored.stride(0), pointer(gain), pointer(share)))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The kernels, as a library for this CPU."""
    path = tmp_path_factory.mktemp("emulation") / "kernels.so"
    folders = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/loss/emulation'}"]
    options = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas", *folders, "-o", path]
    subprocess.run([COMPILER, *options, ROOT / "tests/loss/emulation/kernels.cpp"], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(params=["mma", "wgmma"])
def emulation(library, request):
    """The operators of csrc/ops.cpp that only a GPU has, for CPU tensors, with each kernel's product."""
    emulation = Emulation(library, request.param)
    registered = torch.library.Library("fastdense", "IMPL")
    for name in ("score_exponentials", "score_maxima", "smooth_exponentials"):
        registered.impl(f"{name}_", getattr(emulation, name), "CPU")
    yield emulation
    registered._destroy()


def loss_and_grad(query, passage, target=None, *, scale, chunk_bytes=None, **options):
    """What the native implementation does on a GPU: loss and gradients."""
    given = (options.get("passage_id"), options.get("weight"), options.get("label_smoothing", 0.0))
    problem = make_problem(query, passage, target, scale, *given, False, "mean", chunk_bytes)
    arguments = problem._asdict()
    del arguments["symmetric"]
    budget = arguments.pop("chunk_bytes")
    return native._contrastive_on_gpu(*arguments.values(), True, True, budget)


OPTIONS = {
    "plain": {},
    "ids": {"passage_id": torch.arange(1000) % 97 - 2**40},
    "everything": {
        "passage_id": torch.arange(1000) % 97,
        "weight": torch.arange(1, 1001) % 4 * 0.5,
        "label_smoothing": 0.1,
    },
}


def chosen(options, rows, columns):
    length = {"passage_id": columns, "weight": rows}
    return {name: value[: length[name]] if torch.is_tensor(value) else value for name, value in options.items()}


# Less than a tile, a whole one, a little more in every direction, a width that is no multiple of 8, of many steps.
SHAPES = [(1, 1, 3), (5, 131, 200), (128, 128, 64), (130, 259, 72), (40, 300, 520)]


CASES = [*((shape, "everything") for shape in SHAPES), ((128, 128, 64), "plain"), ((5, 131, 200), "ids")]


@pytest.mark.parametrize(("shape", "choice"), CASES)
def test_against_float64(emulation, oracle, draw, relative_error, shape, choice):
    rows, columns, _ = shape
    query, passage = draw("random", *shape, torch.bfloat16)
    target = (torch.arange(rows) * 7 + columns - 1) % columns
    options = chosen(OPTIONS[choice], rows, columns)
    exact = oracle(query, passage, target, scale=20.0, **options)
    result = loss_and_grad(query, passage, target, scale=20.0, **options)
    for name, actual in zip(exact._fields, result, strict=False):
        allowed = 4e-3 if name in ("query_grad", "passage_grad") else 5e-6
        assert relative_error(actual, getattr(exact, name)) < allowed, name
    assert emulation.bank_conflicts == 0
    assert not any(map(any, emulation.maxima_wanted))


@pytest.mark.parametrize(("kind", "scale"), [("raw", 20.0), ("random", 100.0)])
def test_rows_out_of_the_bounds_range(emulation, oracle, draw, relative_error, kind, scale):
    query, passage = draw(kind, 40, 160, 64, torch.bfloat16)
    options = {"passage_id": torch.arange(160) % 61}
    exact = oracle(query, passage, scale=scale, **options)
    result = loss_and_grad(query, passage, scale=scale, **options)
    for name, actual in zip(exact._fields, result, strict=False):
        allowed = (4e-3 if name in ("query_grad", "passage_grad") else 5e-6) + scale * 600 * 2**-24 * (kind == "raw")
        assert relative_error(actual, getattr(exact, name)) < allowed, name
    assert any(map(any, emulation.maxima_wanted))


def test_maxima_and_sums_give_the_log_sum_exp_of_the_rows_that_want_it(emulation, draw):
    query, passage = draw("raw", 130, 200, 64, torch.bfloat16)
    wanted = (torch.arange(130) == 3).to(torch.int8)  # one row's block of 128 rows, and not the other
    target = torch.arange(130, dtype=torch.int32)
    partials = torch.full((2, 2, 130), 7.0)
    emulation.score_maxima(query, passage, target, None, torch.tensor(2.0), wanted, partials)
    score = 2 * (query[:128].double() @ passage.double().T)
    expected = score.scatter(1, target[:128, None].long(), -torch.inf).logsumexp(1)
    found = (partials[0] + partials[1].log())[:, :128].double().logsumexp(0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    assert (partials[:, :, 128:] == 7).all()


def test_chunks_of_rows_and_a_stride(emulation, oracle, draw, relative_error):
    query, passage = draw("trained", 140, 280, 72, torch.bfloat16)
    query, passage = torch.cat([query, query], 1)[:, 72:], passage.T.contiguous().T
    exact = oracle(query, passage, scale=30.0)
    result = loss_and_grad(query, passage, scale=30.0, chunk_bytes=100_000)
    assert len(emulation.maxima_wanted) == 3
    for name, actual in zip(exact._fields, result, strict=False):
        allowed = 4e-3 if name in ("query_grad", "passage_grad") else 5e-6
        assert relative_error(actual, getattr(exact, name)) < allowed, name


def test_no_bit_depends_on_when_copies_arrive_or_who_goes_first(emulation, draw):
    """A barrier or a wait too few would show in one of the orders."""
    query, passage = draw("raw", 30, 60, 520, torch.bfloat16)  # nine steps, three in each of three stages
    query[::2] /= 100
    results = []
    for emulation.late in (False, True):
        for emulation.falling in (False, True):
            results.append(loss_and_grad(query, passage, scale=20.0, label_smoothing=0.1))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


def test_nothing_is_written_beyond_the_end(emulation, draw):
    query, passage = draw("random", 3, 130, 64, torch.bfloat16)
    around = torch.full((5, 144), 7.0, dtype=torch.bfloat16)
    partials = torch.full((4 * 2 * 3 + 2,), 7.0)
    target, zeros = torch.tensor([129, 0, 5], dtype=torch.int32), torch.zeros(3)
    emulation.score_exponentials(
        query, passage, target, None, torch.tensor(1.0), zeros, zeros, around[1:4, :130], torch.empty(3), partials[1:-1]
    )
    assert (around[[0, 4]] == 7).all()
    assert (around[1:4, 136:] == 7).all()
    assert (around[1:4, 130:136] == 0).all()
    assert partials[0] == partials[-1] == 7
    expected = torch.exp(query.float() @ passage.float().T).scatter(1, target.long()[:, None], 0.0)
    torch.testing.assert_close(around[1:4, :130].float(), expected, rtol=2**-8, atol=0)


def test_a_score_that_is_no_number_makes_its_row_such(emulation, draw):
    query, passage = draw("random", 4, 8, 16, torch.bfloat16)
    query[1, 3] = torch.nan
    loss, query_grad, passage_grad, *_ = loss_and_grad(query, passage, scale=1.0)
    assert loss.isnan()
    assert query_grad[1].isnan().all()
    assert query_grad[[0, 2, 3]].isfinite().all()
    assert not passage_grad.isfinite().any()


@pytest.mark.parametrize(
    ("wanted", "capability", "built", "expected"),
    [
        (None, (9, 0), True, True),
        (None, (9, 0), False, False),
        (None, (8, 0), True, False),
        (None, (10, 0), True, False),
        (b"mma", (9, 0), True, False),
        (b"wgmma", (9, 0), True, True),
        (b"wgmma", (8, 6), True, "needs compute capability 9.0, and this device has 8.6"),
        (b"wgmma", (9, 0), False, "built without 90a"),
        (b"cublas", (9, 0), True, "must be mma or wgmma, not cublas"),
    ],
)
def test_the_choice_of_a_product(library, wanted, capability, built, expected):
    refusal = ctypes.create_string_buffer(200)
    library.chooses_wgmma.restype = ctypes.c_bool
    chosen = library.chooses_wgmma(wanted, *capability, ctypes.c_bool(built), refusal, 200)
    reason = refusal.value.decode()
    assert expected in reason if isinstance(expected, str) else (chosen, reason) == (expected, "")


def test_two_blocks_of_wgmma_share_a_multiprocessors_memory(library):
    """228 KiB on compute capability 9.0, one of them the system's for each block."""
    assert 2 * (library.wgmma_shared_bytes() + 1024) <= 228 * 1024

"""A run killed at any moment leaves whole checkpoints, and resumed it ends with the bits of one that was not killed."""

import functools
import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from forked import end, free_port, rank_environment
from mortal_run import Death, start
from transformers import AutoTokenizer

from fastdense.modeling.load import load_retriever
from fastdense.modeling.settings import read_settings
from fastdense.retrieval.encode import encode_texts
from fastdense.training.checkpoints import find_checkpoint, whole_checkpoints
from fastdense.training.evaluation import load_held_out

# Eight passages for rows of three to six negatives: the missing ones are drawn with replacement.
FLAGS = (
    "--do_train --use_cpu --per_device_train_batch_size 4 --train_n_passages 8 --q_max_len 12 --p_max_len 24 "
    "--max_steps 10 --save_steps 2 --learning_rate 1e-3 --dataset_proc_num 1 --disable_tqdm true"
).split()
KINDS = {
    "plain, accumulated": ["--gradient_accumulation_steps", "2"],
    "grad_cache": ["--grad_cache", "--gc_q_chunk_size", "3", "--gc_p_chunk_size", "5"],
}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


@dataclass
class Run:
    """One training run in ``output``, perhaps in several lives."""

    output: Path
    fixed: list[object]
    environments: Sequence[dict[str, str]] = ({},)
    processes: list[Any] = field(default_factory=list)

    @property
    def log(self) -> str:
        return self.output.with_suffix(".log").read_text()

    def start(self, *flags: object, death: Death | None = None) -> None:
        """Start all ranks; only the last one is to die."""
        port = {"MASTER_PORT": str(free_port())} if len(self.environments) > 1 else {}
        for environment in self.environments:
            self.processes.append(
                start(
                    [*self.fixed, "--output_dir", self.output, *flags],
                    log=self.output.with_suffix(".log"),
                    environment=environment | port,
                    death=death if environment is self.environments[-1] else None,
                )
            )

    def end(self, seconds: float = 120) -> list[int]:
        """Exit statuses of all ranks."""
        statuses = [end(process, seconds) for process in self.processes]
        self.processes.clear()
        return statuses

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        self.end()

    def wait_for_checkpoint(self, after: int = 0) -> None:
        self._wait(lambda: any(_step(path) > after for path in whole_checkpoints(self.output)))

    def wait_until_saving(self) -> None:
        self._wait((self.output / ".saving").exists)

    def _wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.processes[0].is_alive() and not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def finish(self, *flags: object) -> bytes:
        """Train to the end; the final weights as they are on disk."""
        self.start(*flags)
        statuses = self.end()
        assert not any(statuses), self.log
        return (self.output / "model.safetensors").read_bytes()

    def check(self) -> int:
        """Whatever is visible as a checkpoint is whole, and loads. Returns the last one's step."""
        step = 0
        for path in sorted(self.output.glob("checkpoint-*")):
            assert find_checkpoint(str(path), str(self.output)) == str(path)
            load_retriever(path)
            for name in ("optimizer.pt", "scheduler.pt"):
                torch.load(path / name, weights_only=True)
            assert json.loads((path / "trainer_state.json").read_text())["global_step"] == _step(path)
            step = max(step, _step(path))
        return step


@pytest.fixture(scope="module")
def new_run(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, write_jsonl: Any) -> Any:
    """``new_run(*flags, ranks=1)``: a :class:`Run` over 22 rows, with dropout."""
    folder = tmp_path_factory.mktemp("runs")
    words = random.Random(0).choices("amber anchor apple arrow badger basket beacon birch of the in".split(), k=999)
    passages = [{"docid": str(i), "title": words[i], "text": " ".join(words[i : i + 9])} for i in range(900)]
    rows = [
        {
            "query": " ".join(words[7 * i : 7 * i + 4]),
            "positive_passages": passages[i : i + 1 + i % 3],
            "negative_passages": passages[40 * i : 40 * i + 3 + i % 4],
        }
        for i in range(22)
    ]
    source = ["--model_name_or_path", tiny_bert_dir, "--train_dir", write_jsonl(folder / "rows.jsonl", rows)]
    runs: list[Run] = []

    def make(*flags: object, ranks: int = 1) -> Run:
        environments = [{}] if ranks == 1 else [rank_environment(rank, ranks) for rank in range(ranks)]
        cache = ["--data_cache_dir", folder / "cache"]
        runs.append(Run(folder / str(len(runs)), [*FLAGS, *source, *cache, *flags], environments))
        return runs[-1]

    yield make
    for run in runs:
        run.kill()


@pytest.fixture(scope="module")
def expected(new_run: Any) -> Callable[..., bytes]:
    """``expected(*flags, ranks=1)``: the final weights of a run that is not interrupted."""
    return functools.cache(lambda *flags, ranks=1: new_run(*flags, ranks=ranks).finish())


@pytest.mark.parametrize("kind", [pytest.param("plain, accumulated", marks=pytest.mark.slow), "grad_cache"])
def test_killed_again_and_again(kind: str, new_run: Any, expected: Any) -> None:
    run, moments = new_run(*KINDS[kind], "--save_total_limit", 2), random.Random(kind)
    reached = 0
    for life in range(4):
        run.start("--resume_from_checkpoint", "auto")
        run.wait_until_saving() if life % 2 else run.wait_for_checkpoint(after=reached)
        time.sleep(moments.uniform(0, 0.03))
        run.kill()
        reached = run.check()
    assert reached > 0
    assert run.finish("--resume_from_checkpoint", "auto") == expected(*KINDS[kind])
    assert [path.name for path in whole_checkpoints(run.output)] == ["checkpoint-8", "checkpoint-10"]
    assert not [path for path in run.output.iterdir() if path.name.startswith(".")]


OURS = "fastdense.training.checkpoints"
# Where a run dies that keeps one checkpoint, and the step that it can be resumed from.
DEATHS = {
    "writing the first model": (Death("transformers.modeling_utils:safe_save_file", 1, "midway"), 0),
    "writing the second model": (Death("transformers.modeling_utils:safe_save_file", 2, "midway"), 2),
    "writing the optimizer": (Death("torch:save", 2, "midway", "optimizer"), 2),
    "before the rename": (Death(f"{OURS}:publish_directory", 2, "before"), 2),
    "after the rename": (Death(f"{OURS}:publish_directory", 2, "after"), 4),
    "removing the last checkpoint": (Death("shutil:rmtree", 1, "midway", ".checkpoint-2.old."), 4),
    "before the final model": (Death(f"{OURS}:publish_files", 6, "before"), 10),
    "in the final model": (Death("os:replace", 6, "after", "/model.safetensors"), 10),
}


@pytest.mark.parametrize("place", DEATHS)
def test_killed_in_a_save(place: str, new_run: Any, expected: Any) -> None:
    death, step = DEATHS[place]
    run = new_run("--save_total_limit", 1)
    run.start("--resume_from_checkpoint", "auto", death=death)
    assert run.end() == [-signal.SIGKILL], run.log
    assert run.check() == step
    assert run.finish("--resume_from_checkpoint", "auto") == expected()
    assert not [path for path in run.output.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_asked_to_end(number: int, status: int, word: str, new_run: Any) -> None:
    run = new_run("--max_steps", 10**6, "--logging_strategy", "no", "--save_total_limit", 2)
    run.start()
    run.wait_for_checkpoint()
    os.kill(run.processes[0].pid, number)
    assert run.end() == [status]
    assert run.log.splitlines()[-1] == word
    assert "Traceback" not in run.log
    assert run.check() > 0
    assert not (run.output / ".saving").exists()


SHARED = ["--negatives_x_device"]


@pytest.mark.distributed
@pytest.mark.parametrize("flags", [SHARED, [*SHARED, *KINDS["grad_cache"]]], ids=["plain", "grad_cache"])
def test_a_dead_rank_ends_the_others_and_both_resume(flags: list[str], new_run: Any, expected: Any) -> None:
    run = new_run(*flags, ranks=2)
    run.start(death=Death("fastdense.training.step:ContrastiveStep.__call__", 6, "after"))
    first, second = run.processes
    assert end(second) == -signal.SIGKILL
    assert end(first, seconds=20) != 0
    run.end()
    assert run.check() == 4
    assert run.finish("--resume_from_checkpoint", "auto") == expected(*flags, ranks=2)


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("flags", [SHARED, [*SHARED, *KINDS["grad_cache"]]], ids=["plain", "grad_cache"])
def test_uneven_last_batches_and_held_out_sets_go_through(
    flags: list[str], ranks: int, new_run: Any, eval_dir: Path, other_eval_dir: Path
) -> None:
    epoch = ["--max_steps", -1, "--num_train_epochs", 1, "--dataloader_drop_last", "false", "--save_strategy", "no"]
    held_out = [eval_dir, other_eval_dir]
    run = new_run(*flags, *epoch, "--eval_strategy", "epoch", "--eval_dir", *held_out, ranks=ranks)
    assert run.finish()
    state = json.loads((run.output / "trainer_state.json").read_text())
    assert state["global_step"] == -(-22 // (4 * ranks))
    (line,) = (line for line in state["log_history"] if "eval_runtime" in line)
    found = {name.removeprefix("eval_"): value for name, value in line.items() if "@" in name}
    assert found == pytest.approx(measured_in_one_process(run.output, held_out))


def measured_in_one_process(directory: Path, held_out: list[Path]) -> dict[str, float]:
    retriever = load_retriever(directory)
    tokenizer, settings = AutoTokenizer.from_pretrained(directory), read_settings(str(directory))
    sets = load_held_out(SimpleNamespace(eval_dir=[str(path) for path in held_out]), tokenizer, settings)
    encoders = {"query": retriever.query_encoder, "passage": retriever.passage_encoder}
    return sets.measure(lambda side, *texts: encode_texts(encoders[side].eval(), *texts), Accelerator(cpu=True))

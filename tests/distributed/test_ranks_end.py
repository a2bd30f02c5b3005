"""No rank ends before the others, or with threads that Python's end would abort."""

import json
from pathlib import Path
from typing import Any

import forked
import pytest

FLAGS = (
    "--do_train --use_cpu --per_device_train_batch_size 4 --train_n_passages 2 --q_max_len 8 --p_max_len 8 "
    "--max_steps 2 --dataset_proc_num 1 --disable_tqdm true --negatives_x_device"
).split()


@pytest.mark.distributed
def test_ranks_wait_for_the_saved_model_and_leave_the_group(
    tiny_bert_no_dropout_dir: Path, tiny_rows: list[dict[str, Any]], write_jsonl: Any, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", tiny_rows[:16])
    files = ["--train_dir", data, "--model_name_or_path", tiny_bert_no_dropout_dir, "--output_dir", tmp_path / "out"]
    port = {"MASTER_PORT": str(forked.free_port())}
    worker, ranks = Path(__file__).with_name("late_rank.py"), []
    for rank in range(2):
        environment = forked.rank_environment(rank, 2) | port
        arguments = [worker, tmp_path / f"{rank}.json", *FLAGS, *files, "--data_cache_dir", tmp_path / "cache"]
        ranks.append(forked.start(arguments, log=tmp_path / f"{rank}.log", environment=environment))
    assert forked.end_all(ranks) == [0, 0], "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["saved"]
        assert found["threads"]  # or what follows would show nothing
        assert found["left"]
        assert found["threads_after"] == []

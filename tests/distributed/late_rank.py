"""One rank of a training run, of which rank 0 saves late. What this one finds at its end goes into a file.

late_rank.py FILE FLAGS...
"""

import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fastdense.train import main
from fastdense.training.trainer import RetrieverTrainer


def threads_of_gloo() -> list[str]:
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def save_late(trainer: RetrieverTrainer, *arguments: Any, **keywords: Any) -> None:
    if os.environ["RANK"] == "0":
        time.sleep(1)
    save_model(trainer, *arguments, **keywords)


file, *flags = sys.argv[1:]
save_model = RetrieverTrainer.save_model
RetrieverTrainer.save_model = save_late  # type: ignore[method-assign]
main(flags)
output = Path(flags[flags.index("--output_dir") + 1])
found = {"saved": (output / "model.safetensors").exists(), "threads": threads_of_gloo()}
atexit._run_exitfuncs()  # as Python does at its end
found["left"] = not dist.is_initialized()
found["threads_after"] = threads_of_gloo()
Path(file).write_text(json.dumps(found))

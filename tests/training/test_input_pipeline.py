"""What is left open by the data loader's flags."""

import pytest
import torch

from fastdense.training.arguments import RetrieverTrainingArguments
from fastdense.training.input_pipeline import default_workers, machine_share


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 0), (2, 1, 1), (16, 1, 2), (16, 8, 1), (4, 4, 0), (4, 8, 0)]
)
def test_every_training_process_keeps_a_core(cores: int, processes: int, workers: int) -> None:
    assert default_workers(cores, processes) == workers


def test_the_processes_of_a_machine_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    cores, processes = machine_share()
    assert cores >= 1
    assert processes == 8


def test_on_a_cpu_nothing_is_pinned_and_there_are_no_workers_unless_asked_for() -> None:
    arguments = {"output_dir": "unused", "do_train": True, "use_cpu": True}
    args = RetrieverTrainingArguments(**arguments)
    assert (args.dataloader_num_workers, type(args.dataloader_num_workers)) == (0, int)
    assert not args.dataloader_pin_memory
    assert not args.accelerator_config.non_blocking
    assert RetrieverTrainingArguments(**arguments, dataloader_num_workers=3).dataloader_num_workers == 3


@pytest.mark.gpu
def test_on_a_gpu_batches_are_pinned_and_copied_without_waiting() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    arguments = {"output_dir": "unused", "do_train": True}
    args = RetrieverTrainingArguments(**arguments)
    assert args.dataloader_num_workers == default_workers(*machine_share())
    assert args.dataloader_pin_memory
    assert args.accelerator_config.non_blocking
    given = RetrieverTrainingArguments(
        **arguments, dataloader_num_workers=0, accelerator_config={"non_blocking": False}
    )
    assert given.dataloader_num_workers == 0
    assert not given.accelerator_config.non_blocking

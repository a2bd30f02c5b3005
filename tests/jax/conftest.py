"""Eight simulated devices, quiet and without a TPU: set before a JAX backend starts, and inherited by subprocesses."""

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes longer than running: XLA generates code in the simpler of its two ways, and a program's in one piece.
QUICKLY = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
EIGHT = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT} {QUICKLY}".strip()


def pytest_pycollect_makemodule() -> None:
    if importlib.util.find_spec("jaxlib") is None:  # "jax" would also find this folder
        pytest.skip("jax is not installed: pip install 'fastdense[jax]'")


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled-programs")


@pytest.fixture(autouse=True)
def quick_compiler(compiled_programs: Path) -> Iterator[None]:
    """Programs that another test has compiled are not compiled again, and none is made faster than need be.

    For this process only: the compiler of a TPU does all that it can.
    """
    import jax

    settings = {
        "jax_compilation_cache_dir": str(compiled_programs),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def shallow_bert_dir(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layer of the tiny BERT, with dropout: layers are the encoder's tests' affair, and each is compiled."""
    return first_layer(tiny_bert_dir, tmp_path_factory.mktemp("shallow") / "bert")


@pytest.fixture(scope="session")
def shallow_bert_no_dropout_dir(tiny_bert_no_dropout_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return first_layer(tiny_bert_no_dropout_dir, tmp_path_factory.mktemp("shallow") / "bert-no-dropout")


def first_layer(model: Path, directory: Path) -> Path:
    from transformers import AutoModel

    shutil.copytree(model, directory)
    AutoModel.from_pretrained(model, num_hidden_layers=1).save_pretrained(directory)
    return directory


@pytest.fixture
def tiny_run(
    tmp_path: Path, shallow_bert_no_dropout_dir: Path, tiny_rows: list[dict[str, Any]], write_jsonl: Any
) -> Callable[..., Path]:
    """``tiny_run(*flags, driver="jax_train")`` trains 48 rows in batches of 8 and returns the output directory.

    One row a device, or with ``driver="train"`` eight on PyTorch's; without dropout. Flags given later win.
    ``tiny_run.words`` takes the same and returns the command line.
    """
    rows = write_jsonl(tmp_path / "rows.jsonl", tiny_rows)

    def words(*flags: str, driver: str = "jax_train", name: str | None = None) -> list[str]:
        output = tmp_path / (name or driver)
        fixed = (
            f"--output_dir {output} --model_name_or_path {shallow_bert_no_dropout_dir} --train_dir {rows} --do_train "
            f"--per_device_train_batch_size {1 if driver == 'jax_train' else 8} --train_n_passages 3 --q_max_len 16 "
            "--p_max_len 24 --max_steps 4 --learning_rate 1e-3 --logging_steps 1 --save_strategy no --disable_tqdm true"
        )
        return [*fixed.split(), *flags]

    def run(*flags: str, driver: str = "jax_train", name: str | None = None) -> Path:
        importlib.import_module(f"fastdense.{driver}").main(words(*flags, driver=driver, name=name))
        return tmp_path / (name or driver)

    run.words = words  # type: ignore[attr-defined]
    return run

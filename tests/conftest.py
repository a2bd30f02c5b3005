"""What every room's tests share: a quiet offline environment, tiny models and a small Tevatron data set."""

import gc
import gzip
import json
import logging
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Set before anything imports torch or a Hugging Face library, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist already has one process for every core
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit this process's directory
    _HF_HOME = tempfile.TemporaryDirectory(prefix="fastdense-tests-", ignore_cleanup_errors=True)
    os.environ["HF_HOME"] = _HF_HOME.name

import pytest
import torch
from hub_stand_in import HubStandIn

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PUNCTUATION = list(".,?!:;'\"()-_/")
FUNCTION_WORDS = "the of in a is was who what where when which did does has for by on and to with".split()
TOPICS = """
amber anchor apple arrow badger basket beacon birch bottle bridge candle canyon castle cedar cherry cloud copper coral
cotton desert dragon eagle ember engine falcon feather forest fossil garden glacier granite hammer harbor hazel island
ivory jungle kettle lantern lemon maple marble meadow mirror needle ocean olive orchid paper pebble pepper piano planet
prairie quartz rabbit ribbon river saddle shadow silver spider summit temple thunder timber tunnel velvet violet walnut
whale willow window winter
""".split()
VERBS = "built found carried painted measured opened crossed named wrote kept".split()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread an operation: tests run side by side, and a sum's bits depend on how many threads made it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def what_is_imported_stays() -> None:
    """Every training run collects garbage; it need not look for it among a million objects of libraries."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or libraries that count what is left of theirs at the end complain


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A command that runs in this process makes the package's log its own; the next test gets it as it was."""
    logger = logging.getLogger("fastdense")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def tiny_vocabulary() -> list[str]:
    """WordPiece entries: whole words of the tiny data set, and letters for whatever else a test writes."""
    pieces = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *PUNCTUATION]
    words = [*FUNCTION_WORDS, *TOPICS, *VERBS]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *pieces, *words]))


def save_tiny_tokenizer(directory: Path) -> int:
    """Write a BERT tokenizer that ``AutoTokenizer`` loads; return its vocabulary size."""
    from transformers import BertTokenizer

    vocabulary = tiny_vocabulary()
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, model_max_length=160)
    tokenizer.save_pretrained(directory)
    directory.joinpath("vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return len(vocabulary)


def save_tiny_bert(directory: Path, dropout: float, seed: int = 0) -> Path:
    """Write a random two-layer BERT with hidden size 32 and its tokenizer; return ``directory``."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=save_tiny_tokenizer(directory),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=160,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,  # BERT's 0.02 gives every text nearly the same representation at this size
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny BERT with dropout 0.1 and its tokenizer. Read only: every test of the session shares it."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-bert"), dropout=0.1)


@pytest.fixture(scope="session")
def tiny_bert_no_dropout_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as ``tiny_bert_dir`` with dropout 0. Read only."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-bert-no-dropout"), dropout=0.0)


def make_sentence(rng: random.Random, topic: str, n_words: int) -> str:
    words = [rng.choice([*FUNCTION_WORDS, *VERBS, *TOPICS]) for _ in range(n_words - 1)]
    words.insert(rng.randrange(len(words) + 1), topic)
    return " ".join(words)


def make_passage(rng: random.Random, docid: int, topic: str) -> dict[str, str]:
    title = f"{topic} {rng.choice(TOPICS)}"
    return {"docid": str(docid), "title": title, "text": make_sentence(rng, topic, rng.randint(6, 24)) + "."}


def make_rows(n_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Tevatron raw rows: a query about one topic, 1 to 3 positives about it, 3 to 6 negatives about others."""
    rng = random.Random(seed)
    rows = []
    for i in range(n_rows):
        topic = TOPICS[i % len(TOPICS)]
        others = [rng.choice([t for t in TOPICS if t != topic]) for _ in range(rng.randint(3, 6))]
        rows.append(
            {
                "query_id": str(i),
                "query": make_sentence(rng, topic, rng.randint(3, 8)) + " ?",
                "answers": [topic],
                "positive_passages": [make_passage(rng, 100 * i + j, topic) for j in range(1 + i % 3)],
                "negative_passages": [make_passage(rng, 100 * i + 50 + j, t) for j, t in enumerate(others)],
            }
        )
    return rows


@pytest.fixture
def tiny_rows() -> list[dict[str, Any]]:
    """48 deterministic Tevatron raw rows, a fresh copy for every test."""
    return make_rows(48)


@pytest.fixture(scope="session")
def write_jsonl() -> Callable[[Path, list[dict[str, Any]]], Path]:
    """``write_jsonl(path, rows)`` writes one JSON object a line, makes the folder if need be and returns ``path``."""

    def write(path: Path, rows: list[dict[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    """A stand-in of the Hugging Face hub, empty: ``hub.add_model(name, directory)``, ``hub.add_dataset(...)``, and
    ``hub.environment(home)`` for the subprocess that uses it."""
    with HubStandIn() as server:
        yield server


@pytest.fixture
def seed_hub(hub: HubStandIn, tiny_bert_dir: Path, tmp_path: Path) -> HubStandIn:
    """The stand-in with what the documented commands name: ``bert-base-uncased`` (the tiny BERT) and
    ``Tevatron/wikipedia-nq``, a repository with a loading script and 128 tiny rows (one documented batch) a split."""
    hub.add_model("bert-base-uncased", tiny_bert_dir)
    directory = tmp_path / "wikipedia-nq"
    directory.mkdir()
    for split in ("train", "dev"):
        with gzip.open(directory / f"nq-{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in make_rows(128, seed=len(split)))
    (directory / "wikipedia-nq.py").write_text("raise SystemExit('a loading script must not run')\n", encoding="utf-8")
    hub.add_dataset("Tevatron/wikipedia-nq", directory)
    return hub


@pytest.fixture
def eval_dir(tmp_path: Path, tiny_rows: list[dict[str, Any]], write_jsonl: Any) -> Path:
    """A held-out set: the rows' own positives as corpus."""
    return write_held_out(tmp_path / "held-out", tiny_rows, write_jsonl)


@pytest.fixture
def other_eval_dir(tmp_path: Path, write_jsonl: Any) -> Path:
    """Another one, of fewer and other rows."""
    return write_held_out(tmp_path / "small", make_rows(12, seed=1), write_jsonl)


def write_held_out(directory: Path, rows: list[dict[str, Any]], write_jsonl: Any) -> Path:
    """The directory of an evaluation set: the rows' queries, and their positives as corpus."""
    write_jsonl(directory / "corpus.jsonl", [passage for row in rows for passage in row["positive_passages"]])
    write_jsonl(directory / "queries.jsonl", [{"query_id": row["query_id"], "query": row["query"]} for row in rows])
    judgements = [(row["query_id"], p["docid"]) for row in rows for p in row["positive_passages"]]
    (directory / "qrels.txt").write_text("".join(f"{query} 0 {passage} 1\n" for query, passage in judgements))
    return directory


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no training curve, which takes as long as their few steps. Who looks at it overrides this fixture."""
    monkeypatch.setattr("fastdense.training.run_record.RunRecord._draw", lambda *_: None)


@pytest.fixture
def log_of() -> Callable[[Path], list[dict[str, float]]]:
    """``log_of(output_dir)``: the lines of the log that report a step."""

    def read(output: Path) -> list[dict[str, float]]:
        history = json.loads((output / "trainer_state.json").read_text())["log_history"]
        return [line for line in history if "loss" in line]

    return read

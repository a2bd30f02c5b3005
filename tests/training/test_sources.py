"""Training on several data sets: the batches that reach the step, resuming, prefixes and the record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from hub_stand_in import HubStandIn

from fastdense.errors import UserError
from fastdense.training.step import ContrastiveStep

Train = Callable[..., Path]


@pytest.fixture
def sources(tmp_path: Path, write_jsonl: Callable[..., Path]) -> list[str]:
    """Two files of 40 and 24 rows in words of their own."""
    return [
        str(write_jsonl(tmp_path / f"{word}.jsonl", [_row(word, number) for number in range(count)]))
        for word, count in (("river", 40), ("stone", 24))
    ]


def _row(word: str, number: int) -> dict[str, Any]:
    text = f"{word} {chr(97 + number % 26)} {chr(97 + number // 26)}"
    return {
        "query": text,
        "positive_passages": [{"text": f"{text} yes"}],
        "negative_passages": [{"text": f"{text} no"}],
    }


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> list[list[str]]:
    """The queries of every batch that a step takes, as text."""
    seen: list[list[str]] = []
    call = ContrastiveStep.__call__

    def noting(self: ContrastiveStep, model: Any, batch: Any) -> Any:
        seen.append([tokenizer.decode(row, skip_special_tokens=True) for row in batch["query"]["input_ids"]])
        return call(self, model, batch)

    monkeypatch.setattr(ContrastiveStep, "__call__", noting)
    return seen


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert_dir)


def test_batches_are_of_one_source_with_its_prefix(
    train_tiny: Train, sources: list[str], queries: list[list[str]], tokenizer: Any
) -> None:
    output = train_tiny("--train_dir", *sources, "--train_weights", "1", "3", "--source_query_prefix", "one ", "two ")
    train_tiny("--config", str(output / "run.yaml"), "--train_dir", *sources, name="again")
    first, again = queries[:4], queries[4:]
    assert again == first
    marks = [
        tokenizer.decode(tokenizer(f"{start} {word}")["input_ids"], skip_special_tokens=True)
        for start, word in (("one", "river"), ("two", "stone"))
    ]
    for batch in first:
        assert any(all(query.startswith(mark) for query in batch) for mark in marks)
    assert "river.jsonl, stone.jsonl" in (output / "README.md").read_text()
    assert yaml.safe_load((output / "run.yaml").read_text())["train_weights"] == [1.0, 3.0]


@pytest.fixture
def hub_flags(seed_hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The stand-in as this process's hub, with the documented data set; the flags that keep what comes from it here."""
    constants, template = huggingface_hub.constants, "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", seed_hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", seed_hub.endpoint + template)
    monkeypatch.setattr(huggingface_hub.list_repo_files.__self__, "endpoint", seed_hub.endpoint)  # type: ignore[attr-defined]
    return ["--train_dir", "", "--cache_dir", str(tmp_path / "cache")]


def test_data_sets_of_the_hub_are_mixed_by_weight_with_prefixes_of_their_own(
    train_tiny: Train, hub_flags: list[str], queries: list[list[str]]
) -> None:
    names = ["Tevatron/wikipedia-nq", "Tevatron/wikipedia-nq/dev"]
    flags = ["--train_weights", "1", "3", "--batch_sampling", "mixed", "--source_query_prefix", "who ", "when "]
    output = train_tiny("--dataset_name", *names, *flags, *hub_flags)
    for batch in queries:
        assert sorted(query.split()[0] for query in batch) == ["when"] * 6 + ["who"] * 2
    card = (output / "README.md").read_text()
    assert "| Data | Tevatron/wikipedia-nq, Tevatron/wikipedia-nq/dev |" in card
    assert yaml.safe_load(card.split("---")[1])["datasets"] == ["Tevatron/wikipedia-nq"]
    assert yaml.safe_load((output / "run.yaml").read_text())["dataset_name"] == names


def test_local_files_and_data_sets_of_the_hub_go_together(
    train_tiny: Train, hub_flags: list[str], sources: list[str], queries: list[list[str]]
) -> None:
    names = [sources[0], "hub:Tevatron/wikipedia-nq"]
    flags = ["--train_weights", "1", "3", "--batch_sampling", "mixed", "--source_query_prefix", "river ", "who "]
    output = train_tiny(*flags, *hub_flags, "--train_dir", *names)
    for batch in queries:
        assert sorted(query.split()[0] for query in batch) == ["river"] * 2 + ["who"] * 6
    card = (output / "README.md").read_text()
    assert "| Data | river.jsonl, Tevatron/wikipedia-nq |" in card
    assert yaml.safe_load(card.split("---")[1])["datasets"] == ["Tevatron/wikipedia-nq"]
    assert yaml.safe_load((output / "run.yaml").read_text())["train_dir"] == names


def test_a_name_beside_local_files_is_said_to_be_no_data(train_tiny: Train, capfd: pytest.CaptureFixture[str]) -> None:
    train_tiny("--dataset_name", "Tevatron/wikipedia-nq")
    assert "--dataset_name Tevatron/wikipedia-nq is not trained on" in capfd.readouterr().err


def test_a_resumed_run_ends_with_the_same_bits(train_tiny: Train, sources: list[str]) -> None:
    flags = ("--train_dir", *sources, "--max_steps", "11", "--save_strategy", "steps", "--save_steps", "10")
    whole = train_tiny(*flags, name="whole")  # an epoch has 8 batches
    resumed = train_tiny(*flags, "--resume_from_checkpoint", str(whole / "checkpoint-10"), name="resumed")
    expected, found = ((d / "model.safetensors").read_bytes() for d in (whole, resumed))
    assert found == expected


def test_the_plan_is_of_the_first_batch(
    train_tiny: Train, sources: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    train_tiny("--train_dir", *sources, "--dry_run")
    assert "nothing was trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--train_sampling_strategy sequential", "sequential is for one data set"),
        ("--dataloader_drop_last false", "--dataloader_drop_last false is for one data set"),
        ("--per_device_train_batch_size 32", r"stone\.jsonl has 24 rows, fewer than the 32"),
        ("--train_weights 1 99", r"river\.jsonl with weight 1 gets no batch of an epoch"),
    ],
)
def test_what_several_sources_cannot_do_is_refused(
    train_tiny: Train, sources: list[str], flags: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_tiny("--train_dir", *sources, *flags.split())

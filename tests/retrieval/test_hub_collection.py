"""Test collections of the hub, against a stand-in of its HTTP API in a subprocess (it is read at import)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_stand_in import HubStandIn

ROOT = Path(__file__).parents[2]

READ = """
import json, sys
from fastdense.errors import UserError
from fastdense.retrieval.evaluation_set import read_evaluation_set
for name in sys.argv[1:]:
    try:
        found = read_evaluation_set(name)
        print(json.dumps([[text.text_id for text in found.queries], len(found.passages), found.qrels]))
    except UserError as error:
        print(json.dumps(str(error)))
"""

TEXTS = [{"_id": f"d{i}", "text": f"passage {i}"} for i in range(4)]
QUERIES = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(3)]  # q2 is not judged
JUDGEMENTS = [{"query-id": f"q{i}", "corpus-id": f"d{i + 1}"} for i in range(2)]


def write(directory: Path, splits: dict[str, dict[str, list[dict[str, Any]]]]) -> Path:
    """A repository as the hub's: ``config/split-00000-of-00001.parquet``, and a card that says so."""
    configs = []
    for config, rows in splits.items():
        (directory / config).mkdir(parents=True)
        for split, content in rows.items():
            pq.write_table(pa.Table.from_pylist(content), directory / config / f"{split}-00000-of-00001.parquet")
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in rows]
        configs.append({"config_name": config, "data_files": files})
    (directory / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return directory


@pytest.mark.slow  # the hub's libraries take their time; tests/data/test_hub.py is quicker
def test_nano_beir_s_layouts(hub: HubStandIn, tmp_path: Path) -> None:
    """One repository a collection, and one with a split for each; scores where there are some; mistakes."""
    one = {"corpus": {"train": TEXTS}, "queries": {"train": QUERIES}, "qrels": {"train": JUDGEMENTS}}
    hub.add_dataset("zeta-alpha-ai/NanoMSMARCO", write(tmp_path / "one", one))
    scored = [row | {"score": score} for row, score in zip(JUDGEMENTS, (2, 0), strict=True)]
    both = {
        "corpus": {"NanoNQ": TEXTS, "NanoArguAna": TEXTS[2:]},
        "queries": {"NanoNQ": QUERIES, "NanoArguAna": QUERIES},
        "qrels": {"NanoNQ": scored, "NanoArguAna": [{"query-id": "q0", "corpus-id": "d9", "score": 1}]},
    }
    hub.add_dataset("org/NanoBEIR", write(tmp_path / "both", both))
    half = [{"query-id": "q0", "corpus-id": "d1", "score": 0.5}]
    hub.add_dataset("org/half", write(tmp_path / "half", {**one, "qrels": {"train": half}}))

    cases = {
        "hub:zeta-alpha-ai/NanoMSMARCO": [["q0", "q1"], 4, {"q0": {"d1": 1}, "q1": {"d2": 1}}],
        "hub:org/NanoBEIR/NanoNQ": [["q0", "q1"], 4, {"q0": {"d1": 2}, "q1": {"d2": 0}}],
        "hub:org/NanoBEIR/NanoArguAna": "hub:org/NanoBEIR/NanoArguAna: no passage that the judgements call relevant",
        "hub:org/NanoBEIR": "org/NanoBEIR, split train of queries, cannot be loaded (Unknown split",
        "hub:org/half": "org/half, split train of qrels, row 1: the field score is 0.5, a whole number is expected",
        "hub:org/nothing": "the hub has no data set org/nothing that you may read",
        "hub:org/half:corpus": "hub:org/half:corpus: the configs are corpus, queries and qrels; name org/name[/split]",
    }
    environment = hub.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", READ, *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for found, expected in zip(map(json.loads, done.stdout.splitlines()), cases.values(), strict=True):
        if isinstance(expected, str):
            assert found.startswith(expected)
        else:
            assert found == expected

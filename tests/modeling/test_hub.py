"""Models of the hub, against a stand-in of its HTTP API in a subprocess (``HF_ENDPOINT`` is read at import)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn
from huggingface_hub.errors import LocalEntryNotFoundError
from sentence_transformers import SentenceTransformer

from fastdense.errors import UserError
from fastdense.modeling.load import load_retriever
from fastdense.modeling.save import save_retriever
from fastdense.modeling.settings import RetrieverSettings
from fastdense.modeling.tokenizer import load_tokenizer

ROOT = Path(__file__).parent.parent.parent

LOAD = """
import json, sys
from fastdense.errors import UserError
from fastdense.modeling.load import load_retriever
from fastdense.modeling.settings import read_settings
from fastdense.modeling.tokenizer import load_tokenizer
for name, revision in json.loads(sys.argv[1]):
    try:
        load_tokenizer(name, revision=revision)
        encoder = load_retriever(name, revision=revision).query_encoder
        settings = read_settings(name, revision=revision)
        print(json.dumps([encoder.pooling, None if settings is None else settings.tied]))
    except ValueError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def load_names(environment: dict[str, str], *names: tuple[str, str | None]) -> list[list]:
    """For each (name, revision): [pooling, tied], or [error class, message], from one process."""
    command = [sys.executable, "-c", LOAD, json.dumps(names)]
    result = subprocess.run(command, env=environment | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def model_hub(hub: HubStandIn, tiny_bert_dir: Path, tmp_path: Path) -> HubStandIn:
    """The tiny BERT, bare and with mean pooling in another branch, and an untied retriever of ours."""
    hub.add_model("tiny-bert", tiny_bert_dir)
    SentenceTransformer(str(tiny_bert_dir), device="cpu").save(str(tmp_path / "mean"))
    hub.add_model("tiny-bert", tmp_path / "mean", "mean")
    (tmp_path / "untied").mkdir()
    retriever = load_retriever(tiny_bert_dir, untie_encoder=True, pooling="last")
    save_retriever(retriever, load_tokenizer(tiny_bert_dir), tmp_path / "untied", RetrieverSettings())
    hub.add_model("org/untied", tmp_path / "untied")
    return hub


@pytest.mark.slow
def test_hub_models(model_hub: HubStandIn, tmp_path: Path) -> None:
    names = [("tiny-bert", None), ("tiny-bert", "mean"), ("org/untied", None)]
    expected = [["cls", None], ["mean", True], ["last", False]]
    home = tmp_path / "home"
    wrong = [("org/absent", None), ("tiny-bert", "v9")]
    *found, absent, branch = load_names(model_hub.environment(home), *names, *wrong)
    assert found == expected
    assert absent == ["UserError", "org/absent is neither a directory nor a model on the hub that you may read"]
    assert branch == ["UserError", "--model_revision v9: tiny-bert has no such branch, tag or commit"]
    assert load_names(model_hub.offline_environment(home), *names) == expected


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be asked for is not taken for one that is not there: it could be the modules.json."""

    def unreachable(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("connection refused")

    monkeypatch.setattr("fastdense.modeling.source.hf_hub_download", unreachable)
    monkeypatch.setattr("fastdense.modeling.source.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(
        UserError, match=r"^the hub cannot be reached for config\.json of tiny-bert: check the network$"
    ):
        load_retriever("tiny-bert")

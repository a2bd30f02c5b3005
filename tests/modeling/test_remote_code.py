"""Models that bring their own Python code."""

import pytest
import torch

from fastdense.errors import UserError
from fastdense.modeling.load import load_retriever, load_weights
from fastdense.modeling.save import save_retriever
from fastdense.modeling.settings import RetrieverSettings
from fastdense.modeling.tokenizer import load_tokenizer

CONFIGURATION = """
from transformers import BertConfig

class OwnConfig(BertConfig):
    model_type = "own-bert"
"""

MODELING = """
from transformers import BertModel

from .configuration_own import OwnConfig

class OwnModel(BertModel):
    config_class = OwnConfig
"""


@pytest.fixture
def own_dir(bert_copy, edit_json):
    (bert_copy / "configuration_own.py").write_text(CONFIGURATION)
    (bert_copy / "modeling_own.py").write_text(MODELING)
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    edit_json(bert_copy / "config.json", lambda c: c.update(model_type="own-bert", auto_map=auto_map))
    return bert_copy


def test_remote_code_runs_only_when_asked(own_dir):
    with pytest.raises(UserError, match=r"brings its own Python code: .*pass --trust_remote_code"):
        load_retriever(own_dir)
    retriever = load_retriever(own_dir, trust_remote_code=True)
    assert type(retriever.query_encoder.backbone).__name__ == "OwnModel"


def test_remote_code_is_saved_along(own_dir, tmp_path):
    retriever = load_retriever(own_dir, trust_remote_code=True)
    saved = tmp_path / "saved"
    saved.mkdir()
    save_retriever(retriever, load_tokenizer(own_dir, trust_remote_code=True), saved, RetrieverSettings())
    again = load_retriever(saved, trust_remote_code=True)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in retriever.state_dict().items())
    load_weights(retriever, saved)
    with pytest.raises(UserError, match="--trust_remote_code"):
        load_retriever(saved)

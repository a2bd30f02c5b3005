"""What an encoder passes on to its backbone, and what a retriever is made of."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastdense.errors import UserError
from fastdense.modeling.encoder import Encoder, Retriever


class Backbone(nn.Module):
    """Remembers what it was called with; state of token i is (i, 1)."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=2)
        self.pooler = nn.Linear(2, 2)
        self.received = None

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, use_cache=None):
        self.received = {"token_type_ids": token_type_ids, "use_cache": use_cache}
        states = torch.stack([input_ids.float(), torch.ones_like(input_ids).float()], dim=-1)
        return SimpleNamespace(last_hidden_state=states)


def batch(**more):
    ids = torch.tensor([[3, 4, 0], [6, 8, 9]])
    return {"input_ids": ids, "attention_mask": ids.ne(0).long(), **more}


def test_order_of_pooling_projection_and_normalization():
    projection = nn.Linear(2, 3)
    vector = Encoder(Backbone(), "last", projection, normalize=True)(batch())
    expected = projection(torch.tensor([[4.0, 1.0], [9.0, 1.0]]))
    torch.testing.assert_close(vector, expected / expected.norm(dim=-1, keepdim=True))


def test_the_backbone_gets_what_it_takes_and_no_more():
    backbone = Backbone()
    encoder = Encoder(backbone, "cls")
    encoder(batch(docid=torch.tensor([1, 2])))
    assert backbone.received == {"token_type_ids": None, "use_cache": False}
    types = torch.zeros(2, 3, dtype=torch.long)
    encoder(batch(token_type_ids=types))
    assert backbone.received["token_type_ids"] is types


def test_retriever_encodes_what_it_is_given():
    encoder = Encoder(Backbone(), "mean")
    retriever = Retriever(encoder, encoder)
    assert retriever.tied
    assert retriever.encoders == (encoder,)
    assert retriever(query=batch())[1] is None
    assert retriever(passage=batch())[0] is None
    query, passage = retriever(batch(), batch())
    assert torch.equal(query, passage)
    other = Encoder(Backbone(), "mean")
    assert not Retriever(encoder, other).tied
    assert Retriever(encoder, other).encoders == (encoder, other)


def test_shared_parameters_are_counted_once():
    encoder = Encoder(Backbone(), "cls", nn.Linear(2, 3))
    names = [name for name, _ in Retriever(encoder, encoder).named_parameters()]
    assert len(names) == 4
    assert all(name.startswith("query_encoder.") for name in names)


def test_unknown_pooling():
    with pytest.raises(UserError, match=r"^--pooling must be one of cls, mean, last, not 'first'$"):
        Encoder(Backbone(), "first")

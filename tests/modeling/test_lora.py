"""LoRA adapters: what is trained, what is merged, and what a resumed run gets back."""

from pathlib import Path

import pytest
import torch

from fastdense.errors import UserError
from fastdense.modeling.encoder import Retriever
from fastdense.modeling.load import load_retriever
from fastdense.modeling.lora import LoraSettings, add_lora, has_lora, load_trained, merged, save_trained

SETTINGS = LoraSettings(rank=4, alpha=8, dropout=0.1)
INPUTS = {"input_ids": torch.tensor([[2, 9, 11, 3]]), "attention_mask": torch.ones(1, 4).long()}


def adapted(directory: Path, settings: LoraSettings = SETTINGS, **options: bool) -> Retriever:
    retriever = load_retriever(directory, **options)
    add_lora(retriever, settings)
    with torch.no_grad():  # as after some training: updates begin at zero
        for name, parameter in retriever.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return retriever


def test_only_adapters_and_projections_are_trained(tiny_bert_dir: Path) -> None:
    options = {"add_pooler": True, "projection_in_dim": 32, "projection_out_dim": 8, "untie_encoder": True}
    retriever = adapted(tiny_bert_dir, **options)
    names = [name for name, p in retriever.named_parameters() if p.requires_grad]
    assert all("lora_" in name or ".projection." in name for name in names)
    assert len(names) == 2 * (2 * 2 * 2 + 2)  # towers x (layers x (query, value) x (A, B) + weight and bias)


@pytest.mark.parametrize("targets", [None, ["key"], ["all-linear"]])
def test_the_unused_pooler_stays_frozen(tiny_bert_dir: Path, targets: list[str] | None) -> None:
    retriever = adapted(tiny_bert_dir, LoraSettings(4, 8, 0.0, targets))
    assert has_lora(retriever)
    assert not any(p.requires_grad for p in retriever.query_encoder.backbone.pooler.parameters())


@pytest.mark.parametrize("untie", [False, True])
def test_merged_is_a_plain_retriever_with_the_same_vectors(tiny_bert_dir: Path, untie: bool) -> None:
    retriever = adapted(tiny_bert_dir, untie_encoder=untie)
    weights = {name: tensor.clone() for name, tensor in retriever.state_dict().items()}
    plain = merged(retriever)
    fresh = load_retriever(tiny_bert_dir, untie_encoder=untie)
    assert plain.state_dict().keys() == fresh.state_dict().keys()
    assert plain.tied is retriever.tied is not untie
    assert not has_lora(plain)
    for model in (plain, retriever, fresh):
        model.eval()
    with torch.no_grad():
        ours, theirs, before = (model(query=INPUTS)[0] for model in (plain, retriever, fresh))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - before).abs().max() > 0.01
    assert all(torch.equal(tensor, weights[name]) for name, tensor in retriever.state_dict().items())


def test_without_lora_there_is_nothing_to_merge(tiny_bert_dir: Path) -> None:
    retriever = load_retriever(tiny_bert_dir)
    assert merged(retriever) is retriever


def test_what_was_trained_comes_back_bit_for_bit(tiny_bert_dir: Path, tmp_path: Path) -> None:
    retriever, other = adapted(tiny_bert_dir), adapted(tiny_bert_dir)
    save_trained(retriever, tmp_path)
    load_trained(other, tmp_path)
    own = retriever.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in other.state_dict().items())


def test_what_does_not_fit_is_refused(tiny_bert_dir: Path, tmp_path: Path) -> None:
    retriever = adapted(tiny_bert_dir)
    with pytest.raises(UserError, match="was saved by a run without --lora"):
        load_trained(retriever, tmp_path)
    save_trained(retriever, tmp_path)
    with pytest.raises(UserError, match="has other adapters than --lora"):
        load_trained(adapted(tiny_bert_dir, LoraSettings(2, 8, 0.0)), tmp_path)
    (tmp_path / "lora.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="is damaged"):
        load_trained(retriever, tmp_path)


def test_layers_that_are_not_there_are_named(tiny_bert_dir: Path) -> None:
    with pytest.raises(UserError, match="--lora cannot adapt this model .bert.: .*wrong_name.*--lora_target_modules"):
        add_lora(load_retriever(tiny_bert_dir), LoraSettings(4, 8, 0.0, ["wrong_name"]))

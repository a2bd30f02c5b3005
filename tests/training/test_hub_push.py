"""``--push_to_hub`` against the stand-in hub, through the real client in this process."""

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from hub_stand_in import TOKEN, USER, HubStandIn
from sentence_transformers import SentenceTransformer

from fastdense.errors import UserError

Train = Callable[..., Path]
PUSH = ("--push_to_hub", "--hub_model_id", f"{USER}/retriever", "--hub_token", TOKEN)
SAVE = ("--save_strategy", "steps", "--save_steps", "2")


@pytest.fixture
def no_picture() -> None:
    """Here it is drawn, and pushed."""


@pytest.fixture
def reachable(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubStandIn:
    """The stand-in as this process's hub; nobody is logged in."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return hub


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_the_trained_directory_is_pushed_whole_with_a_card_that_tells(
    reachable: HubStandIn, train_tiny: Train, eval_dir: Path
) -> None:
    evaluated = ("--eval_strategy", "steps", "--eval_steps", "2", "--eval_dir", str(eval_dir))
    output = train_tiny(*PUSH, *SAVE, *evaluated, "--hub_strategy", "end", "--add_pooler", "--projection_in_dim", "32")
    pushed = reachable.pushed(f"{USER}/retriever")
    assert reachable.commits == ["End of training"]
    assert names(pushed) == {name for name in names(output) if not name.startswith("checkpoint-")}
    assert {"run.yaml", "metrics.json", "training_curve.png", "1_Pooling/config.json", "pooler.pt"} <= names(pushed)
    assert all((pushed / name).read_bytes() == (output / name).read_bytes() for name in names(pushed))
    assert SentenceTransformer(str(pushed), device="cpu").encode_query("which bridge").shape == (768,)
    card = (pushed / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "sentence-transformers"
    measured = json.loads((output / "metrics.json").read_text())
    assert measured["best"]["mrr@10"] >= measured["evaluation"]["mrr@10"]
    told = (
        *(f'SentenceTransformer("{USER}/retriever")', "| Data | rows.jsonl |", "| Queries per step | 8 |"),
        *(f"| mrr@10 | {measured['evaluation']['mrr@10']:.4f} |", f"| Mean loss | {measured['train_loss']:.4f} |"),
        *("```bash\n", "torch 2."),
    )
    assert [piece for piece in told if piece not in card] == []
    assert TOKEN not in card


def test_every_save_pushes_a_retriever_and_checkpoint_all_that_a_resumption_needs(
    reachable: HubStandIn, train_tiny: Train
) -> None:
    train_tiny(*PUSH, *SAVE, "--hub_strategy", "checkpoint")
    pushed = reachable.pushed(f"{USER}/retriever")
    assert reachable.commits == [
        *("Training in progress, step 2", "Training in progress, step 2, checkpoint"),
        *("Training in progress, step 4", "Training in progress, step 4, checkpoint", "End of training"),
    ]
    assert "optimizer.pt" not in names(pushed)
    assert {"optimizer.pt", "trainer_state.json", "modules.json"} <= names(pushed / "last-checkpoint")
    assert json.loads((pushed / "last-checkpoint" / "trainer_state.json").read_text())["global_step"] == 4


def test_all_checkpoints_stay_on_the_hub_and_each_resumes(reachable: HubStandIn, train_tiny: Train) -> None:
    """Also those that --save_total_limit has removed here."""
    output = train_tiny(*PUSH, *SAVE, "--hub_strategy", "all_checkpoints", "--save_total_limit", "1")
    pushed = reachable.pushed(f"{USER}/retriever")
    assert reachable.commits == [
        *("Training in progress, step 2", "Training in progress, step 2, checkpoint"),
        *("Training in progress, step 4", "Training in progress, step 4, checkpoint", "End of training"),
    ]
    assert [path.name for path in sorted(output.glob("checkpoint-*"))] == ["checkpoint-4"]
    assert names(pushed / "checkpoint-2") == names(pushed / "checkpoint-4") == names(output / "checkpoint-4")
    assert "optimizer.pt" not in names(pushed)
    resumed = train_tiny("--resume_from_checkpoint", str(pushed / "checkpoint-2"), name="resumed")
    assert (resumed / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()


def test_a_failed_push_leaves_the_directory_and_says_how_to_push_by_hand(
    reachable: HubStandIn, train_tiny: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reachable.refuses_commits = True
    with pytest.raises(UserError) as caught:
        train_tiny(*PUSH, *SAVE)
    warning = capsys.readouterr().err
    assert f"checkpoint-2 could not be pushed to {USER}/retriever: the hub says 507" in warning
    by_hand = f"push it by hand: hf upload {USER}/retriever {tmp_path / 'output'} . --exclude 'checkpoint-*'"
    assert by_hand in str(caught.value)
    assert "exceeded your storage limit" in str(caught.value)
    assert (tmp_path / "output" / "model.safetensors").is_file()
    assert (tmp_path / "output" / "checkpoint-4").is_dir()


@pytest.mark.parametrize(
    ("flags", "pieces"),
    [
        (("--push_to_hub",), ("you are not logged in", "hf auth login", "HF_TOKEN")),
        (("--push_to_hub", "--hub_token", "hf_wrong"), ("Invalid user token", "hf auth login")),
        ((*PUSH, "--hub_model_id", "others/x"), ("others/x cannot be pushed to", "the hub says 403", "rights")),
        ((*PUSH, "--hub_model_id", "a b"), ("a b cannot be pushed to: Repo id must",)),
    ],
)
def test_the_hub_is_asked_before_training(
    reachable: HubStandIn,
    train_tiny: Train,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    pieces: tuple[str, ...],
) -> None:
    monkeypatch.setattr("fastdense.training.run.load_training_set", None)
    with pytest.raises(UserError) as caught:
        train_tiny(*flags)
    assert str(caught.value).startswith("--push_to_hub: ")
    assert "\n" not in str(caught.value)
    assert [piece for piece in pieces if piece not in str(caught.value)] == []


def test_a_hub_out_of_reach_is_named(reachable: HubStandIn, train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"retriever cannot be pushed to: the hub cannot be reached"):
        train_tiny(*PUSH)

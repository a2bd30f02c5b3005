"""sentence-transformers' own trainer with the fused loss: one import line is changed.

python examples/drop_in.py MODEL PAIRS.jsonl OUTPUT [STEPS]      rows: {"anchor": ..., "positive": ...}
"""

import sys

from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)

# before: from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
from fastdense.integrations.sentence_transformers import (
    CachedFusedMultipleNegativesRankingLoss as CachedMultipleNegativesRankingLoss,
)


def main(model_name: str, pairs: str, output: str, steps: int = -1) -> None:
    """Train, and save a model that ``SentenceTransformer(output)`` loads."""
    model = SentenceTransformer(model_name)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=output, per_device_train_batch_size=256, max_steps=steps, save_strategy="no", report_to="none"
        ),
        train_dataset=load_dataset("json", data_files=pairs, split="train").select_columns(["anchor", "positive"]),
        loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=32),
    )
    trainer.train()
    model.save_pretrained(output)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5) or not all(steps.isdecimal() for steps in sys.argv[4:]):
        print("usage: python examples/drop_in.py MODEL PAIRS.jsonl OUTPUT [STEPS]", file=sys.stderr)
        sys.exit(2)
    main(sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:5]))

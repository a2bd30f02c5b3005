"""Train dense retrievers with in-batch negatives."""

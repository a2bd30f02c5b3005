"""``python -m fastdense.demo``: a retriever trained from nothing on Python's own documentation, then used."""

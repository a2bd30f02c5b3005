"""From a trained retriever to a judged ranking: encode, search, evaluate, and the file formats between them."""

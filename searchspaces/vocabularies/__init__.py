"""Which rows of embeddings are the same token's? Tokenizers read, matched, and brought to one vocabulary."""

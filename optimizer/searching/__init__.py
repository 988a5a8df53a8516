"""Which question next, and which not? The loop of a search, and what it has not to ask."""

"""Index and retrieval: what was embedded, kept and found again."""

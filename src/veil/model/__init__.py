"""A transformers model with remote layers: compiled, folded, on disk, and what it does in each mode."""

"""Models for Triton's Python backend: of token ids, and of texts."""

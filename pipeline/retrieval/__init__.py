"""Answers from documents: chunks, embeddings, an index, its search, and what the model is told."""

"""Scores of texts by a cross-encoder: vLLM's score, Jina's and Cohere's rerank, NIM's ranking."""

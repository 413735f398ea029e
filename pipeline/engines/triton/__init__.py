"""Triton Inference Server around an engine: model repositories, and the server."""

"""Models of Triton's Python backend that are copied into a repository and need no pipeline there.

They import what NVIDIA's container of Triton with TensorRT-LLM has: numpy and tokenizers.
"""

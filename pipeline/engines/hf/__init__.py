"""The engine on PyTorch with transformers."""

"""The engine on TensorRT-LLM."""

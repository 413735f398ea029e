"""Training, import and merge with NeMo on Megatron-Core."""

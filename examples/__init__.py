"""Scripts that use the pipeline from Python."""

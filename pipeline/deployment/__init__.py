"""Where the pipeline and its models run: clusters."""

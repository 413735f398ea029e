"""Experiment tracking in MLflow: an outbox that stages write to, and a process that sends it."""

"""What happened, delivered to MLflow: an outbox, and a process that sends it."""

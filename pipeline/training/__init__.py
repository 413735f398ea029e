"""Training runs: the job, its batches, its progress, and the processes that run it."""

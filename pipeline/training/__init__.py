"""Training runs: the job, its batches and progress, the processes that share it."""

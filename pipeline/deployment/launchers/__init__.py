"""Launchers: run a command with torchrun, or submit it to Slurm or Kubernetes."""

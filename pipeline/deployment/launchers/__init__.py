"""Hands a command to torchrun, Slurm or Kubernetes."""

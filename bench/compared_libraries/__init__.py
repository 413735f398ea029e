"""Libraries that could take the place of code of ours, each measured beside it."""

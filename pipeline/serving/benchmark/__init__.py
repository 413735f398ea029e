"""The load generator of `stage=benchmark`."""

"""Continuous batching for engines that compute one step at a time."""

"""Smaller weights: formats, calibration with ModelOpt, export and its proofs."""

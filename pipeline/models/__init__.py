"""Model folders: architecture, files, checks, proofs of conversions."""

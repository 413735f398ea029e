"""What a run, an artifact or a version says of itself afterwards: lineage, reports, clean-up."""

"""What a run, an artifact or a version says of itself afterwards: lineage, drawings, clean-up."""

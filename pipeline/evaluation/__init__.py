"""Generated answers, metrics and the report."""

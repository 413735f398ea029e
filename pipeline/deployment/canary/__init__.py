"""A candidate beside the version that serves: a share of the traffic, and a decision."""

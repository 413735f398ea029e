"""Settings of stages outside the graph, one module a stage."""

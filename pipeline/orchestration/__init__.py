"""The command line, the graph, and the run of one stage or of all."""

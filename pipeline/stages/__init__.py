"""The verbs of the pipeline, one a file: `run(config, inputs, out) -> Outcome`, none in another."""

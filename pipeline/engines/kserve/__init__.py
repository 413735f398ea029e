"""KServe's open inference protocol (v2), as Triton extends it: the client's side."""

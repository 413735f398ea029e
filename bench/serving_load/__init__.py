"""What the server withstands; `python -m bench.serving_load --help`."""

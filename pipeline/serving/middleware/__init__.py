"""ASGI middleware around the API: limits, authentication, the request log, transcripts, traces."""

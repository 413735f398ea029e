"""Routes beside the APIs that generate text: tokenization, health, and facts of the server."""

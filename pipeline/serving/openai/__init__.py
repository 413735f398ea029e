"""The OpenAI API: its endpoints, its protocol, and the way from a request to an engine and back."""

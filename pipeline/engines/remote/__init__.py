"""The engine on another OpenAI-compatible server."""

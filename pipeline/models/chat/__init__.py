"""Conversations to token ids and back: the one place where text becomes tokens."""

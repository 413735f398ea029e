"""From documents to structured text: one file a format (pipeline/data/documents.py is the door)."""

"""From a base checkpoint and a pile of conversations to a served, proven, tracked model."""

__version__ = "0.1.0"

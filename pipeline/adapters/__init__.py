"""The only rooms that import a vendor's library; they speak paths, token ids and dataclasses."""

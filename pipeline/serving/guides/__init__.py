"""Guides of guided decoding, tried out in processes with limits before an engine gets them."""

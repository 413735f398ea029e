"""Files of conversations to rows of a dataset."""

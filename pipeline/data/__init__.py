"""From files of conversations to the rows of a dataset."""

"""What is in a data set before training: stage=inspect."""

"""What stage=prepare writes and stage=inspect shows: rows that are decided, and their figures."""

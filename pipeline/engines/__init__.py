"""Token ids in, token ids out: engines, and the choice of one for this machine."""

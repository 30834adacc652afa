"""Everything that touches disk: checkpoints in, checkpoints out."""

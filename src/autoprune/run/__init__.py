"""One run from beginning to end: open, plan, prune, measure; and what it would need."""

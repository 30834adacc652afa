"""A grid of recipes -> results: every cell in a process of its own, resumable."""

"""What came out of a run: types, JSON, and the table that everything is drawn from."""

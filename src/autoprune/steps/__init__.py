"""Everything that can happen to a block: one paper, one short file. Imports no torch; ``table.py`` lists the steps."""

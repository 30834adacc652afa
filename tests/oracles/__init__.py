"""Slow and obvious versions of the methods, written from the papers' formulas and sharing no code with the package.

They work on lists or in float64, one element, one column, one sample at a time, so that each can be read against
the formula it stands for.
"""

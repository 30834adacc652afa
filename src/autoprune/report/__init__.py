"""Typed results and what is drawn from them."""

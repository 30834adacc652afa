"""Whole runs on a model that fits in a few kilobytes."""

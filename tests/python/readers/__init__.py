"""Readers of traces that are not ours: what they make of a file is what counts."""

"""Vectors and tokens in the formats of other programs."""

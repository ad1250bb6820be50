"""Two versions of the same vectors or tokens, side by side."""

"""Codebooks: the sample they are fitted on, k-means, the card."""

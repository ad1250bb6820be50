"""Turn an archive of animal sound into embeddings and frames on a Ray cluster."""

__version__ = "0.1.0"

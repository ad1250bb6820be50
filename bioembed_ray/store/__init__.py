"""Objects on a disk and in buckets, behind `storage.py`."""

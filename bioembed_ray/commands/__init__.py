"""The commands that `cli.py` gathers."""

"""Hits as a page."""

"""The windows most like a sound."""

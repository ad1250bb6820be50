"""The encoders: how each is loaded, what it eats, what it gives."""

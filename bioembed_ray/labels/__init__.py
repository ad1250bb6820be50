"""Which encoder tells labels apart."""

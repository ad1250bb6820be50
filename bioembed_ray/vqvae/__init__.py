"""The VQ-VAE: log-mel patches, the network, its quantiser, training, and what is said of the result."""

"""What is read: prefixes, globs, lists, manifests."""

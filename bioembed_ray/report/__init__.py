"""The report: pages of HTML that need no network, made of a bounded sample of an output."""

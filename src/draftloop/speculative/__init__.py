"""The decoder: draft, verify, accept, and the distributions it samples from."""

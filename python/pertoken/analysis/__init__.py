"""Pure functions over a `Profile`: what its tables say about latency."""

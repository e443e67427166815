"""Training adapters through remote layers: examples, the loop, and adapters at inference. Client only."""

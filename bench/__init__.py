"""What makes the figures of the README and the docs: one program each, one record format. ``python -m bench`` runs them."""

"""A client half against weights that its user trusts: what `veil check` compares, and makes secret vectors from."""

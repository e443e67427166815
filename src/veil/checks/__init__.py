"""Checked answers: the client's secret sign vectors, made from weights that its user trusts, and what they find."""

"""Measuring: what encrypted generation costs on this machine, beside plaintext and a peer, in one run and one record."""

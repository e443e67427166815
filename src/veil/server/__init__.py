"""The untrusted half: weights, hint and batches' shares, and the calls of a network. No key and no client code."""

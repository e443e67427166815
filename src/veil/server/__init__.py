"""The untrusted half: weights, hint and masks' shares, and the calls of a network. No key and no client code."""

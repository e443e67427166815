"""Situations: what people bring or do, found in a public report of another project (named beside it) or tried by hand.

What must come of each is the right result or a refusal in one line. `situations.small` has the models that they share.
"""

"""`HybridFHEModel`: a compiled model and a session under the names of Concrete ML."""

"""What the `veil` commands do; `veil.cli` holds their names, options and help."""

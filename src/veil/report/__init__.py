"""What `veil report` measures, and the page that it makes of it."""

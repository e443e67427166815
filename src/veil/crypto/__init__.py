"""The scheme: what is public, the client's secrets and masks, and the server's half of a mask."""

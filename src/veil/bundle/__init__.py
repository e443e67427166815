"""What a compiled model is on both sides and on disk: manifest, header, constants, terms, the server's half."""

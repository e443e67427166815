"""The trusted half at work: keys, masks offline, rows, and the way to a server. No server may import it."""

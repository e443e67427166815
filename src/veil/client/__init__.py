"""The trusted half at work: keys, masks ahead of time, rows, and the way to a server. No server may import it."""

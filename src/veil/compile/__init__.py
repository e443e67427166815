"""From a float model to integer weights and what the client keeps: calibrate, fuse norms, quantize."""

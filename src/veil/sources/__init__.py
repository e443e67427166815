"""Other people's model files: the built-in model, folders, GGUF files, the hub, chat templates."""

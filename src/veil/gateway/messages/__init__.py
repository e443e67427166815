"""`/v1/messages`: Anthropic's API, as far as a text model has it."""

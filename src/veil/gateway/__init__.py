"""A private endpoint on the user's own machine: the OpenAI API and a chat page over a model elsewhere."""

"""`/v1/responses`: OpenAI's newer API, as far as a text model has it; what it keeps lives in memory."""

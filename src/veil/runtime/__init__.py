"""What happens in a forward pass on the client: remote layers, the router, the residual stream, drafts."""

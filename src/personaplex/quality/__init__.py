"""What a model loses when its weights, or its keys and values, are stored in fewer bits."""

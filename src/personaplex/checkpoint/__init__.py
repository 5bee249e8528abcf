"""From files to weights: strict, lazy, tensor by tensor."""

"""MLX building blocks: weights inside, state passed in and out. They know nothing about speech."""

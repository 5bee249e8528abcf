"""Training: the codec and the language model, from synthesised speech, resumable to the step."""

"""Talking with a backend through a microphone and a speaker, or through files that stand for them."""

"""Does the model sound like the voice it was given? Its own speech beside the voice prompts' sound, by an embedding.

`embedding` tells speakers apart (and `onnx` by a network), `own_sound` finds what a voice prompt sounds like, `run`
lets the model answer recordings in every voice, `table` makes the rows.
"""

"""What a codec loses: recordings through it and back, beside Opus, and beside the codec damaged on purpose.

`measures` says how far two waveforms are apart, `coders` takes them there and back, `usage` counts codes, `run` does it
for every recording and makes the rows.
"""

"""How good is it? Models measured by what they say and when, codecs by what they lose, voices by their likeness.

Every evaluation ends in one `Result` (`result.py`): rows of numbers with their intervals (`row.py`), and what could not
be measured. `nano/` holds the test of the model in the package, item by item; `prompts/` any questions and the words
of right answers; `verification/` the round trip with its controls. `degeneracy` tells speech from loops, silence and
noise, and `hearing` is the recogniser that they listen with.
"""

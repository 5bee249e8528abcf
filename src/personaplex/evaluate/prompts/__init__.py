"""Are the answers right? Spoken questions, roles and the words that must be in the answers; many seeds of each.

`questions` reads a set of them (`document` is its YAML with the lines of it), `spoken` has a synthesiser say them,
`asking` holds the conversations, as many at a time as the engine has slots, `expectation` says what is right and
`table` counts. `heldout` is the test of the model in the package, whose questions are none of those it was trained on.
"""

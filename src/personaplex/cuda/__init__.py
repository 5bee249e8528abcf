"""Kernels for NVIDIA cards, where MLX's own operations leave the card waiting. Each is optional.

The stock operations are the default path on every other machine, and what each kernel is tested against: the sources
are run as they stand, block by block, by an emulator in the tests, and on a card by `personaplex bench`.
A function in here takes and returns arrays; it knows no modules and no configuration.
"""

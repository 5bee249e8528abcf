"""Is this a model that hears, answers and speaks? Spoken to, heard again and checked, as seed and reference do.

A round trip: questions aloud into the live engine, a recogniser on what comes out, and `checks` on both (`exhibit`).
`agreement` holds the live engine against the library's offline call, `controls` are what must fail the very same
checks (another answer, silence, noise, a loop, the same model with its weights shuffled: `broken`), and
`verification` is all of it. A check whose control passes is worth nothing, so that fails the whole.
"""

"""What nano can do, measured: items nobody trained on, conversations with them, a recogniser's ear, one table.

The stages are separate because they want different machines: `items` makes the test (a synthesiser), `conversation`
talks through it in batches (an accelerator), `listening` has a recogniser hear the answers (processor cores), `table`
counts. `codec` measures the codec alone. Every number comes with its 95 % interval.
"""

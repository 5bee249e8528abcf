"""Networks made into a stepping machine: prompts, sampling, one frame at a time. No threads, no files, no network."""

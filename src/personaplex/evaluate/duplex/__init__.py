"""Full-Duplex-Bench: who speaks when, by that benchmark's own definitions, on its folders or on a set made here.

Sources: Lin et al., arXiv 2503.04721 (v1.0) and 2507.23159 (v1.5), and the scripts of their repository
(`v1_v1.5/evaluation`, February 2026), which the numbers follow where paper and script differ. `clips` knows the
folders, `transcript` and `speech_spans` say what was spoken when, `takeover`, `backchannel` and `overlap` are the
definitions, `scores` applies them to a clip and `table` to all; `conversations` lets a model talk, `synthetic` makes
clips.
"""

"""Formats of label files, one a module: each reads rows of a file into items and records, and writes a store's content.

`openai_json` (lm-human-preferences), `trl`, `anthropic_hh`, `summarize` (OpenAI's summaries), `native` (lossless), and
`samples` (of a run, or plain text), which only holds items to rate. `registry.py` knows them all.
"""

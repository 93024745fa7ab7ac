"""The model, one file per component of the diagram; `gpt.py` reads from top to bottom."""

"""The model: one file per component of the transformer diagram, composed from top to bottom in `gpt.py`."""

"""From a model to text: samplers, and generation over a functional key/value cache."""

"""Generating text: samplers, and decoding with a functional key/value cache."""

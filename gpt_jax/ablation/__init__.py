"""Ablation studies: one question, paired runs, verdicts that can be believed, and a report."""

from gpt_jax.ablation.judging import judge

__all__ = ["judge"]

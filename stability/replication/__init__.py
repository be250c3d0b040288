"""The paper's experiments, all of them: which they are, what is finished, and the card that says how they came out."""

PAPER = "arXiv 2309.14322"
"""Sweeps whose `source` names it are the paper's experiments."""

"""Regenerate a paper's tables from its released code and weights, and say cell by cell what reproduces."""

__version__ = "0.1.0"

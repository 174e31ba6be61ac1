"""Compiled loops and kernels. Imports nothing from the rest of sedq."""

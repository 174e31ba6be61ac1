"""The command line: ``sedq demo | calibrate | campaign | scrub | info``."""

from sedq.commands._main import main

__all__ = ["main"]

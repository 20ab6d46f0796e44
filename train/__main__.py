"""``python -m retina.train``: the entry point for torchrun."""

from .cli import main

main()

"""``python -m retina.train``: what torchrun starts."""

from .cli import main

main()

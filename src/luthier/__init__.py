"""Luthier: fine-tuning whose every stage measures what it made."""

__version__ = "0.1.0"

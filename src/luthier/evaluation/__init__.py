"""Prompts, answers, metrics and paired statistics: is the tuned model better, and by how much."""

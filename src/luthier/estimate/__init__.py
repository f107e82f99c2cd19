"""Memory, time and cost before the run, from `config.json` alone. Nothing heavy is loaded."""

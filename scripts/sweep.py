"""A sweep as a script: --config CONFIG, and every option of `luthier sweep`."""

from luthier.cli import run_script

if __name__ == "__main__":
    run_script("sweep")

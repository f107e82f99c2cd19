"""Stage `accept` as a script: --config CONFIG, and every option of `luthier accept`."""

from luthier.cli import run_script

if __name__ == "__main__":
    run_script("accept")

"""Stage `base` as a script: --config CONFIG, and every option of `luthier base`."""

from luthier.cli import run_script

run_script("base")

"""Stage `baseline` as a script: --config CONFIG, and every option of `luthier baseline`."""

from luthier.cli import run_script

run_script("baseline")

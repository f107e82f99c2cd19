"""Stage `merge` as a script: --config CONFIG, and every option of `luthier merge`."""

from luthier.cli import run_script

run_script("merge")

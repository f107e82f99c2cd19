"""Stage `export` as a script: --config CONFIG, and every option of `luthier export`."""

from luthier.cli import run_script

run_script("export")

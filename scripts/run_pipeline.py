"""The whole pipeline as a script: --config CONFIG, and every option of `luthier run`."""

from luthier.cli import run_script

run_script("run")

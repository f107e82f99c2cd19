"""Stage `sft` as a script: --config CONFIG, and every option of `luthier sft`."""

from luthier.cli import run_script

run_script("sft")

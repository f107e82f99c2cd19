"""Run configs: strict YAML, `extends:`, `--set`, validation with file:line, JSON Schema."""

from luthier.config.run_config import RunConfig, load_config, load_section
from luthier.config.schema import json_schema
from luthier.config.section import Field, Section, result_free

__all__ = [
    "Field",
    "RunConfig",
    "Section",
    "json_schema",
    "load_config",
    "load_section",
    "result_free",
]

"""What a run config says about formats, in sections of `prepare`, and what formats get of it."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import field_validator

from luthier.config import Field, Section
from luthier.errors import DataError

Text = Annotated[str, Field(min_length=1)]


class ClassificationOptions(Section):
    """How a text is put to the model, and what its labels mean."""

    template: Text = Field("{text}", description="the user's message; {text} is the row's text")
    label_descriptions: dict[str, Text] = Field(
        default_factory=dict,
        description="what a label means; shown where the system prompt says {labels}",
    )

    @field_validator("template")
    @classmethod
    def _has_text(cls, template: str) -> str:
        return _with_places(template, "{text}")


class ExtractionOptions(Section):
    """What the JSON of every reply must be like."""

    json_schema: Path | None = Field(
        None,
        description="JSON Schema file (draft 2020-12, or the one it names); every output is "
        "checked against it and its keys are put in the order of `properties`",
    )


class GroundedOptions(Section):
    """How documents are shown, and the rows that teach a model to look for the right one."""

    template: Text = Field(
        "{documents}\n\nQuestion: {question}",
        description="the user's message; {documents} are numbered from [1]",
    )
    not_found_reply: Text = Field(
        "The documents do not say.",
        description="the reply where a row has no answer, and of the unanswerable rows made here",
    )
    distractors: int = Field(
        0, ge=0, le=100, description="documents of other rows put among each row's own"
    )
    unanswerable_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0,
        description="share of the rows with an answer that are repeated with other rows' "
        "documents in place of those it rests on, and not_found_reply as the reply",
    )

    @field_validator("template")
    @classmethod
    def _has_both(cls, template: str) -> str:
        return _with_places(template, "{documents}", "{question}")


@dataclass(frozen=True)
class FormatOptions:
    """What formats get to know of the config. `schema` is the text of the JSON Schema."""

    classification: ClassificationOptions = field(default_factory=ClassificationOptions)
    grounded: GroundedOptions = field(default_factory=GroundedOptions)
    schema: str | None = None
    answer_regex: str | None = None


def options_of(
    classification: ClassificationOptions,
    extraction: ExtractionOptions,
    grounded: GroundedOptions,
    answer_regex: str | None = None,
) -> FormatOptions:
    """The options of a config, with the schema file read and checked.

    Raises:
        DataError: the schema cannot be read, or is none.
    """
    from luthier.data.formats.json_target import read_schema

    schema = None if extraction.json_schema is None else read_schema(extraction.json_schema)
    return FormatOptions(classification, grounded, schema, answer_regex)


def label_list(labels: Sequence[str], descriptions: Mapping[str, str]) -> str:
    """What `{labels}` in a system prompt becomes: a line a label, with what it means.

    Raises:
        DataError: a description of a label that there is not.
    """
    for described in descriptions:
        if described not in labels:
            near = difflib.get_close_matches(described, labels, n=1)
            raise DataError(
                f"prepare.classification.label_descriptions: '{described}' is not one of the "
                f"{len(labels)} labels. "
                + (f"Did you mean '{near[0]}'?" if near else "Remove it, or mend the labels.")
            )
    return "\n".join(
        f"- {label}: {descriptions[label]}" if label in descriptions else f"- {label}"
        for label in labels
    )


def fill(template: str, **texts: str) -> str:
    """A template with its places filled at once: what a text says is never a place itself."""
    return re.sub(
        "|".join(f"{{{place}}}" for place in texts), lambda found: texts[found[0][1:-1]], template
    )


def _with_places(template: str, *places: str) -> str:
    for place in places:
        if template.count(place) != 1:
            raise ValueError(f"the template must say {place} once, not {template.count(place)}x")
    return template

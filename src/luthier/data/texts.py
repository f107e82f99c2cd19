"""The free text of a row: what people wrote, as against labels and JSON that code will read."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from luthier.data.rows import Message, Parsed


def has_fixed_reply(parsed: Parsed) -> bool:
    """Whether the reply is a class or JSON, spelled by `label` or `output` and not free text."""
    return parsed.label is not None or parsed.output is not None


def free_messages(parsed: Parsed) -> Sequence[Message]:
    """The messages of the conversation whose content is free text."""
    return parsed.messages[:-1] if has_fixed_reply(parsed) else parsed.messages


def free_texts(parsed: Parsed) -> list[str]:
    """Every free text that is not empty: messages, both replies of a preference, documents."""
    texts = _contents(free_messages(parsed))
    if parsed.chosen or parsed.rejected:
        texts += _contents(parsed.chosen or ()) + _contents(parsed.rejected or ())
    for document in parsed.documents or ():
        texts += [text for text in (document.title, document.text) if text]
    return texts


def rewrite(parsed: Parsed, change: Callable[[str], str]) -> bool:
    """Put `change(text)` in place of every free text; whether any became another one."""
    before = free_texts(parsed)
    after = [change(text) for text in before]
    if after == before:
        return False
    changed = dict(zip(before, after, strict=True))
    free = len(free_messages(parsed))
    parsed.messages[:free] = _rewritten(parsed.messages[:free], changed)
    if parsed.chosen is not None:
        parsed.chosen = _rewritten(parsed.chosen, changed)
    if parsed.rejected is not None:
        parsed.rejected = _rewritten(parsed.rejected, changed)
    if parsed.documents is not None:
        parsed.documents = [
            replace(
                document,
                text=changed.get(document.text, document.text),
                title=changed.get(document.title or "", document.title),
            )
            for document in parsed.documents
        ]
    return True


def _contents(messages: Iterable[Message]) -> list[str]:
    return [content for message in messages if (content := message.get("content"))]


def _rewritten(messages: Iterable[Message], changed: dict[str, str]) -> list[Message]:
    return [
        {**message, "content": changed[message["content"]]} if message.get("content") else message
        for message in messages
    ]

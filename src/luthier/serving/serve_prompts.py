"""What a server does before it answers: gates of its prompts, its tokens and its context."""

from collections.abc import Mapping, Sequence

from luthier.gates import Gate, check
from luthier.serving.serve_gates import Asked, NotChecked, question, quoted, with_first
from luthier.serving.serve_probes import ChatProbe, ServeProbes, TextProbe
from luthier.serving.served_endpoint import ServedReply


def template_gate(asked: Asked) -> Gate | NotChecked:
    """served-template: each prompt as long as in training, with the same ids where told."""
    wrong: list[str] = []
    compared = 0
    for (chat, reply), ids in zip(asked.pairs, asked.prompt_ids, strict=True):
        length = reply.prompt_tokens if isinstance(reply, ServedReply) else None
        if ids is None and length is None:
            continue
        compared += 1
        problem = _length_problem(chat, length) or _ids_problem(chat, ids)
        if problem:
            wrong.append(f"{question(chat)}: {_with_place(problem, chat, ids)}")
    if not compared:
        return NotChecked("served-template", "server does not count the tokens of prompts")
    return check(
        "served-template", len(wrong), "==", 0, with_first(f"{compared} prompts compared", wrong)
    )


def _length_problem(chat: ChatProbe, length: int | None) -> str:
    more = 0 if length is None else length - len(chat.prompt_ids)
    if not more:
        return ""
    told = f"trained on {len(chat.prompt_ids)} tokens, served {length}"
    if more == 1:
        return f"{told} (one more: is a BOS put before the template's own?)"
    if more < 0 and any(message["role"] == "system" for message in chat.messages):
        return f"{told} (fewer: does the template leave out the system prompt?)"
    return f"{told} (another chat template)"


def _ids_problem(chat: ChatProbe, ids: Sequence[int] | None) -> str:
    differs = ids is not None and tuple(ids) != chat.prompt_ids
    return "another prompt" if differs else ""


def _with_place(problem: str, chat: ChatProbe, ids: Sequence[int] | None) -> str:
    if ids is None or tuple(ids) == chat.prompt_ids:
        return problem
    return f"{problem}; {_first_difference(chat.prompt_ids, ids)}"


def _first_difference(trained: Sequence[int], served: Sequence[int]) -> str:
    pairs = zip(trained, served, strict=False)
    shorter = min(len(trained), len(served))
    at = next((row for row, (left, right) in enumerate(pairs) if left != right), shorter)
    window = slice(max(0, at - 1), at + 4)
    return (
        f"from token {window.start}: trained {list(trained[window])}, "
        f"served {list(served[window])}"
    )


def tokenizer_gate(pairs: Sequence[tuple[TextProbe, Sequence[int] | None]]) -> Gate:
    """served-tokenizer: the ids of every text; None for a text that was refused."""
    wrong = [
        f"{quoted(text.text)} "
        + ("was refused" if ids is None else _first_difference(text.ids, ids))
        for text, ids in pairs
        if ids is None or tuple(ids) != text.ids
    ]
    return check(
        "served-tokenizer", len(wrong), "==", 0, with_first(f"{len(pairs)} texts tokenised", wrong)
    )


def counts_gate(pairs: Sequence[tuple[TextProbe, int]]) -> Gate:
    """served-tokenizer by counts: off by as much for every text is a BOS that completions add."""
    surplus = [count - len(text.ids) for text, count in pairs]
    usual = max(set(surplus), key=surplus.count)
    wrong = [
        f"{quoted(text.text)}: {len(text.ids)} tokens trained, {count - usual} served"
        for text, count in pairs
        if count - len(text.ids) != usual
    ]
    told = f"{len(pairs)} texts, numbers of tokens compared: server has no /tokenize"
    return check("served-tokenizer", len(wrong), "==", 0, with_first(told, wrong))


def context_gate(asked: Asked) -> Gate:
    """served-context, by what the server says."""
    server, wanted = asked.server, asked.probes.context_tokens
    assert server.context_tokens is not None
    told = server.context_from
    if server.context_tokens < wanted:
        option = _CONTEXT_OPTIONS.get(server.kind, "a longer context")
        told += f"; longer prompts are refused or cut. Start it with {option}"
    return check("served-context", server.context_tokens, ">=", wanted, told)


_CONTEXT_OPTIONS: Mapping[str, str] = {
    "llama.cpp": "-c",
    "vLLM": "--max-model-len",
    "Ollama": "PARAMETER num_ctx in the Modelfile",
    "TGI": "--max-total-tokens",
    "SGLang": "--context-length",
}


def long_request_gate(probes: ServeProbes, read: int | None, wanted: int) -> Gate:
    """served-context, by one prompt that fills it: `read` of its `wanted` tokens were read."""
    told = f"a prompt of about {wanted} tokens for a context of {probes.context_tokens}"
    if read is None:
        told += " was refused"
    elif read < wanted * 0.98:
        told += " was cut without a word"
    return check("served-context", read or 0, ">=", int(wanted * 0.98), told)

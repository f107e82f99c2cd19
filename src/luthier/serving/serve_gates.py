"""What a server's answers to a bundle's probes say: one gate for each thing that can be wrong."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from luthier.evaluation.endpoint_client import Failed
from luthier.gates import Gate, check, judged
from luthier.serving.serve_probes import (
    Candidate,
    ChatProbe,
    ServeProbes,
    TextProbe,
    same_text,
)
from luthier.serving.served_endpoint import ServedReply, ServedToken
from luthier.serving.server_facts import ServerFacts

_SHOWN = 3
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class NotChecked:
    """A gate that this server gives no means to measure, and why."""

    id: str
    why: str


@dataclass(frozen=True)
class Asked:
    """A server's greedy replies to the probes; `prompt_ids` are its own, None where unknown."""

    probes: ServeProbes
    server: ServerFacts
    replies: Sequence[ServedReply | Failed]
    prompt_ids: Sequence[Sequence[int] | None]

    @property
    def pairs(self) -> Iterator[tuple[ChatProbe, ServedReply | Failed]]:
        """Each probe with its reply."""
        return zip(self.probes.chats, self.replies, strict=True)


@dataclass(frozen=True)
class ServeLimits:
    """`min_agreement` is a share of the probes; `max_difference_nats` of log-probabilities."""

    min_agreement: float
    max_difference_nats: float


# By the bits of a served weight, from the greatest.
_LIMITS: Sequence[tuple[int, ServeLimits]] = (
    (16, ServeLimits(0.95, 0.1)),
    (8, ServeLimits(0.9, 0.2)),
    (0, ServeLimits(0.75, 0.5)),
)


def limits_for(
    bits: int, min_agreement: float | None = None, max_difference_nats: float | None = None
) -> ServeLimits:
    """The limits for weights of so many bits, unless others are given."""
    found = next(limits for least, limits in _LIMITS if bits >= least)
    return ServeLimits(
        found.min_agreement if min_agreement is None else min_agreement,
        found.max_difference_nats if max_difference_nats is None else max_difference_nats,
    )


def ours_gate(asked: Asked, limits: ServeLimits) -> Gate:
    """served-is-ours: the share of answers that are the merged model's."""
    differing = [
        f"{_question(chat)}: merged model {_quoted(chat.answer)}, served {_said(reply)}"
        for chat, reply in asked.pairs
        if not _answers_as(reply, chat.answer)
    ]
    total = len(asked.probes.chats)
    share = (total - len(differing)) / total
    return check(
        "served-is-ours",
        share,
        ">=",
        limits.min_agreement,
        _told(f"{total} greedy answers compared with the merged model's", differing),
    )


def tuned_gate(asked: Asked, limits: ServeLimits) -> Gate | NotChecked:
    """served-is-tuned: of the probes that tell base and tuned model apart."""
    pairs = [(chat, reply) for chat, reply in asked.pairs if chat.tells_apart]
    if not pairs:
        return NotChecked("served-is-tuned", "no probe tells base and tuned model apart")
    tuned = sum(_answers_as(reply, chat.answer) for chat, reply in pairs)
    base = sum(_answers_as(reply, chat.base_answer) for chat, reply in pairs)
    told = f"{len(pairs)} probes tell base and tuned model apart: {tuned} answered as tuned"
    told += f", {base} as the base"
    if base > len(pairs) / 2:
        told += ". It serves the base model: load the merged weights, or the adapter"
    return check("served-is-tuned", tuned / len(pairs), ">=", limits.min_agreement, told)


def logprobs_gate(asked: Asked, limits: ServeLimits) -> Gate | NotChecked:
    """served-logprobs: how far the probabilities of answer tokens and their rivals are off.

    The mean over all compared tokens of |served - merged| log-probability, in nats. Rivals count
    as well as the answer's own token: where a model is sure of itself, the answer's probability is
    1 whatever the weights, but a wrong scale still moves its rivals by nats.
    """
    if not any(isinstance(reply, ServedReply) and reply.tokens for reply in asked.replies):
        return NotChecked("served-logprobs", "server gives no log-probabilities")
    differences = [
        difference
        for chat, reply in asked.pairs
        if isinstance(reply, ServedReply)
        for difference in _differences(chat, reply)
    ]
    if not differences:
        return NotChecked("served-logprobs", "no served token could be matched with the model's")
    mean = sum(differences) / len(differences)
    return check(
        "served-logprobs",
        round(mean, 4),
        "<=",
        limits.max_difference_nats,
        f"nats, mean over {len(differences)} tokens, most {max(differences):.3g}; weights served "
        f"as {asked.server.weights or 'unknown'}. More than the limit is another model: a wrong "
        "alpha, a missing layer, a coarser quantisation",
    )


def _differences(chat: ChatProbe, reply: ServedReply) -> Iterator[float]:
    """Up to and with the first token on which the two part."""
    for step, token in zip(chat.steps, reply.tokens, strict=False):
        yield from (_difference(one, token) for one in step)
        if not _is_token(step[0], token):
            return


def _difference(candidate: Candidate, token: ServedToken) -> float:
    """Where the server does not list the candidate, it is less likely than all that it lists."""
    listed = [token, *token.others]
    for one in listed:
        if _is_token(candidate, one):
            return abs(candidate.log_probability - one.log_probability)
    least = min(one.log_probability for one in listed)
    return max(0.0, candidate.log_probability - least)


def _is_token(candidate: Candidate, token: ServedToken) -> bool:
    if token.id is not None:
        return token.id == candidate.id
    return token.text == candidate.text or token.text.strip() == candidate.text.strip() != ""


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
            wrong.append(f"{_question(chat)}: {_with_place(problem, chat, ids)}")
    if not compared:
        return NotChecked("served-template", "server does not count the tokens of prompts")
    return check(
        "served-template", len(wrong), "==", 0, _told(f"{compared} prompts compared", wrong)
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
        f"{_quoted(text.text)} "
        + ("was refused" if ids is None else _first_difference(text.ids, ids))
        for text, ids in pairs
        if ids is None or tuple(ids) != text.ids
    ]
    return check(
        "served-tokenizer", len(wrong), "==", 0, _told(f"{len(pairs)} texts tokenised", wrong)
    )


def counts_gate(pairs: Sequence[tuple[TextProbe, int]]) -> Gate:
    """served-tokenizer by counts: off by as much for every text is a BOS that completions add."""
    surplus = [count - len(text.ids) for text, count in pairs]
    usual = max(set(surplus), key=surplus.count)
    wrong = [
        f"{_quoted(text.text)}: {len(text.ids)} tokens trained, {count - usual} served"
        for text, count in pairs
        if count - len(text.ids) != usual
    ]
    told = f"{len(pairs)} texts, numbers of tokens compared: server has no /tokenize"
    return check("served-tokenizer", len(wrong), "==", 0, _told(told, wrong))


def stops_gate(asked: Asked) -> Gate:
    """served-stops: answers that end in the merged model end here, without the stop's text."""
    pairs = [(chat, reply) for chat, reply in asked.pairs if chat.stopped]
    problems = [
        f"{_question(chat)}: {problem}"
        for chat, reply in pairs
        if (problem := _stop_problem(reply, asked.probes.stop_strings))
    ]
    eos = asked.server.eos_token
    if eos is not None and eos not in asked.probes.stop_strings:
        stops = " or ".join(asked.probes.stop_strings)
        problems.insert(0, f"the server's end token is {eos!r}, trained was {stops}")
    told = f"{len(pairs)} answers that the merged model ends by itself"
    return check("served-stops", len(problems), "==", 0, _told(told, problems))


def _stop_problem(reply: ServedReply | Failed, stop_strings: Sequence[str]) -> str:
    if isinstance(reply, Failed):
        return _said(reply)
    if reply.finish_reason == "length":
        return f"went on to the limit: {_quoted(reply.text)}"
    if reply.finish_reason != "stop":
        return f"ended by {reply.finish_reason}"
    seen = next((stop for stop in stop_strings if stop in reply.text), None)
    return f"has {seen} in its text: {_quoted(reply.text)}" if seen else ""


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


def sampling_gate(
    asked: Asked, pairs: Sequence[tuple[ServedReply | Failed, ServedReply | Failed]]
) -> Gate:
    """served-sampling, a warning: greedy also for requests that say nothing of sampling."""
    same = sum(_says(greedy) == _says(default) for greedy, default in pairs)
    temperature = asked.server.temperature
    told = f"{same} of {len(pairs)} answers to requests without a temperature are the greedy ones"
    if temperature is not None:
        told += f"; the server's own temperature is {temperature:g}"
    if temperature or same < len(pairs):
        told += ". Set it to 0 at the server, or in every request"
    gate = (
        check("served-sampling", temperature, "==", 0.0, told)
        if temperature
        else check("served-sampling", same / len(pairs), "==", 1.0, told)
    )
    return judged([gate], {"served-sampling": "warn"})[0]


def _answers_as(reply: ServedReply | Failed, answer: str) -> bool:
    return isinstance(reply, ServedReply) and same_text(reply.text) == same_text(answer)


def _says(reply: ServedReply | Failed) -> str | None:
    return same_text(reply.text) if isinstance(reply, ServedReply) else None


def _said(reply: ServedReply | Failed) -> str:
    if isinstance(reply, Failed):
        return f"refused ({reply.reason} {reply.detail})"
    return _quoted(reply.text)


def _question(chat: ChatProbe) -> str:
    return _quoted(chat.messages[-1]["content"] if chat.messages else chat.prompt)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def _told(what: str, problems: Sequence[str]) -> str:
    return "; ".join([what, *problems[:_SHOWN]])

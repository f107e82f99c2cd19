"""What a server's answers to a bundle's probes say: one gate for each thing that can be wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.evaluation.endpoint_client import Failed
from luthier.gates import Gate, check, judged
from luthier.serving.serve_probes import (
    Candidate,
    ChatProbe,
    ServeProbes,
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

    def agrees(self, chat: ChatProbe, reply: ServedReply | Failed, tie_nats: float) -> bool:
        """Whether a reply is the merged model's, or parts from it where that was near a tie."""
        if isinstance(reply, Failed) or _is_text(reply, chat.answer):
            return isinstance(reply, ServedReply)
        rest = reply.text.lstrip()
        for number, step in enumerate(chat.steps):
            own = step[0]
            taken = self._taken(step, rest, is_first=number == 0)
            if taken is None:
                return False
            if taken is not own:
                return own.log_probability - taken.log_probability <= tie_nats
            rest = rest[len(own.text.lstrip() if number == 0 else own.text) :]
        return len(chat.answer_ids) > len(chat.steps)  # it parts after what is known

    def _taken(self, step: Sequence[Candidate], rest: str, *, is_first: bool) -> Candidate | None:
        """The candidate with which the rest of a reply begins, or that ends it."""
        if not rest:
            return next((one for one in step if one.id in self.probes.stop_token_ids), None)
        begun = [
            one
            for one in step
            if (text := one.text.lstrip() if is_first else one.text) and rest.startswith(text)
        ]
        return max(begun, key=lambda one: len(one.text), default=None)


@dataclass(frozen=True)
class ServeLimits:
    """`min_agreement` is a share of the probes, `max_difference_nats` of log-probabilities.

    `tie_nats`: where the merged model preferred its token over the served one by no more, both are
    its answer; rounding decides between them.
    """

    min_agreement: float
    max_difference_nats: float
    tie_nats: float


# By the bits of a served weight, from the greatest. Measured 2026-12 by llama.cpp b11549 on 24
# free answers of SmolLM2-135M-Instruct, far less sure than a tuned model's, mean nats: F16
# 0.004 (bfloat16 in torch 0.052), Q8_0 0.10, Q5_0 0.48, Q4_0 0.89; share of answers agreeing: F16
# 1.0, Q8_0 0.92. A tiny tuned model: F16 0.001, Q8_0 0.012, Q4_0 0.13; 0.9 of alpha 0.20.
_LIMITS: Sequence[tuple[int, ServeLimits]] = (
    (16, ServeLimits(0.95, 0.1, 0.25)),
    (8, ServeLimits(0.9, 0.2, 0.5)),
    (5, ServeLimits(0.75, 0.6, 1.0)),
    (0, ServeLimits(0.75, 1.0, 1.0)),
)


def limits_for(
    bits: int, min_agreement: float | None = None, max_difference_nats: float | None = None
) -> ServeLimits:
    """The limits for weights of so many bits, unless others are given."""
    found = next(limits for least, limits in _LIMITS if bits >= least)
    return ServeLimits(
        found.min_agreement if min_agreement is None else min_agreement,
        found.max_difference_nats if max_difference_nats is None else max_difference_nats,
        found.tie_nats,
    )


def ours_gate(asked: Asked, limits: ServeLimits) -> Gate:
    """served-is-ours: the share of answers that are the merged model's."""
    differing = [
        f"{question(chat)}: merged model {quoted(chat.answer)}, served {_said(reply)}"
        for chat, reply in asked.pairs
        if not asked.agrees(chat, reply, limits.tie_nats)
    ]
    total = len(asked.probes.chats)
    return check(
        "served-is-ours",
        (total - len(differing)) / total,
        ">=",
        limits.min_agreement,
        with_first(f"{total} greedy answers compared with the merged model's", differing),
    )


def tuned_gate(asked: Asked, limits: ServeLimits) -> Gate | NotChecked:
    """served-is-tuned: of the probes that tell base and tuned model apart."""
    pairs = [(chat, reply) for chat, reply in asked.pairs if chat.tells_apart]
    if not pairs:
        return NotChecked("served-is-tuned", "no probe tells base and tuned model apart")
    tuned = sum(asked.agrees(chat, reply, limits.tie_nats) for chat, reply in pairs)
    base = sum(_is_text(reply, chat.base_answer) for chat, reply in pairs)
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


def stops_gate(asked: Asked, limits: ServeLimits) -> Gate:
    """served-stops: answers that end in the merged model end here, without the stop's text.

    Answers that are not the merged model's may go on to the limit, as many of them as
    `min_agreement` lets through: what they would end with is not known.
    """
    pairs = [(chat, reply) for chat, reply in asked.pairs if chat.stopped]
    problems, astray = [], []
    for chat, reply in pairs:
        problem = _stop_problem(chat, reply, asked.probes.stop_strings)
        if problem:
            problems.append(f"{question(chat)}: {problem}")
        elif isinstance(reply, ServedReply) and reply.finish_reason == "length":
            is_tie = asked.agrees(chat, reply, limits.tie_nats)
            astray += [] if is_tie else [f"{question(chat)}: went on to the limit"]
    if len(astray) > (1 - limits.min_agreement) * len(pairs):
        problems += astray
    eos = asked.server.eos_token
    if eos is not None and eos not in asked.probes.stop_strings:
        stops = " or ".join(asked.probes.stop_strings)
        problems.insert(0, f"the server's end token is {eos!r}, trained was {stops}")
    told = f"{len(pairs)} answers that the merged model ends by itself"
    return check("served-stops", len(problems), "==", 0, with_first(told, problems))


def _stop_problem(
    chat: ChatProbe, reply: ServedReply | Failed, stop_strings: Sequence[str]
) -> str:
    if isinstance(reply, Failed):
        return _said(reply)
    seen = next((stop for stop in stop_strings if stop in reply.text), None)
    if seen:
        return f"has {seen} in its text: {quoted(reply.text)}"
    ours = same_text(chat.answer)
    if reply.finish_reason == "length" and ours and same_text(reply.text).startswith(ours):
        return f"went on after the answer: {quoted(reply.text)}"
    return "" if reply.finish_reason in ("stop", "length") else f"ended by {reply.finish_reason}"


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


def _is_text(reply: ServedReply | Failed, answer: str) -> bool:
    return isinstance(reply, ServedReply) and same_text(reply.text) == same_text(answer)


def _says(reply: ServedReply | Failed) -> str | None:
    return same_text(reply.text) if isinstance(reply, ServedReply) else None


def _said(reply: ServedReply | Failed) -> str:
    if isinstance(reply, Failed):
        return f"refused ({reply.reason} {reply.detail})"
    return quoted(reply.text)


def question(chat: ChatProbe) -> str:
    """A probe as a message names it."""
    return quoted(chat.messages[-1]["content"] if chat.messages else chat.prompt)


def quoted(text: str) -> str:
    """The beginning of a text, in quotes."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def with_first(what: str, problems: Sequence[str]) -> str:
    """What was looked at, and the first problems."""
    return "; ".join([what, *problems[:_SHOWN]])

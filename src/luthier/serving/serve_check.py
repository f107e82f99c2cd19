"""Asking a running server a bundle's probes, and what its answers come to as gates."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from luthier.errors import ServingError
from luthier.evaluation.endpoint_client import Failed
from luthier.evaluation.rows import evenly
from luthier.gates import Gate, check, failures, judged
from luthier.progress import Reporter
from luthier.serving import serve_gates, serve_prompts
from luthier.serving.serve_gates import Asked, NotChecked
from luthier.serving.serve_probes import PROBES_NAME, ServeProbes, TextProbe
from luthier.serving.served_endpoint import Question, ServedEndpoint, ServedReply
from luthier.serving.server_facts import ServerFacts, chat_ids, find_facts, tokenize
from luthier.store import Artifact, Store

_CONCURRENCY = 4
_SAMPLING_PROBES = 16
_COUNTED_TEXTS = 40  # asked as completions, where the server has no /tokenize
_REPEATS = 10
_NAME_DIFFERS = "clients that ask for the bundle's name get an error, or whatever is served here"

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class CheckOptions:
    """None: the limit for the precision that the server says it serves."""

    model: str | None = None
    probes: int | None = None
    min_agreement: float | None = None
    max_difference_nats: float | None = None


@dataclass(frozen=True)
class Checked:
    """What was found at a server."""

    endpoint: str
    model: str
    server: ServerFacts
    probes: int
    gates: Sequence[Gate]
    not_checked: Sequence[NotChecked]

    @property
    def holds(self) -> bool:
        """Whether no gate fails."""
        return not failures(self.gates)


def bundle_folder(reference: str) -> Path:
    """The folder of a bundle: of the store, or a copy of one anywhere; raises as `find_bundle`."""
    if (Path(reference) / PROBES_NAME).is_file():
        return Path(reference)
    return find_bundle(reference).path


def find_bundle(reference: str) -> Artifact:
    """A bundle of the store, or a copy of one with its manifest.

    Raises:
        StoreError: there is none of that name.
        ServingError: it is no bundle.
    """
    artifact = Store.default().resolve(reference)
    if artifact.kind != "bundle":
        raise ServingError(
            f"{artifact.ref} is of kind {artifact.kind}, not bundle. Export it "
            "(luthier export CONFIG), then name the bundle, such as "
            f"{artifact.manifest.name}/bundle@latest."
        )
    return artifact


def check_server(
    probes: ServeProbes, endpoint: ServedEndpoint, options: CheckOptions, reporter: Reporter
) -> Checked:
    """Ask every probe and judge.

    Raises:
        ServingError: the model asked for is not there, or the connection is lost.
    """
    named = _choose_model(probes, endpoint, options.model)
    count = options.probes or len(probes.chats)
    probes = probes.model_copy(
        update={"chats": tuple(probes.chats[row] for row in evenly(len(probes.chats), count))}
    )
    if not probes.chats:
        raise ServingError("The bundle has no probes. Export the model again.")
    asked = _ask(probes, endpoint, reporter)
    limits = serve_gates.limits_for(
        asked.server.bits, options.min_agreement, options.max_difference_nats
    )
    found: list[Gate | NotChecked] = [
        *named,
        serve_gates.ours_gate(asked, limits),
        serve_gates.tuned_gate(asked, limits),
        serve_gates.logprobs_gate(asked, limits),
        serve_prompts.template_gate(asked),
        _tokenizer_gate(asked, endpoint, reporter),
        serve_gates.stops_gate(asked, limits),
        _context_gate(asked, endpoint),
        _sampling_gate(asked, endpoint),
    ]
    return Checked(
        endpoint=endpoint.api,
        model=endpoint.model,
        server=asked.server,
        probes=len(probes.chats),
        gates=[one for one in found if isinstance(one, Gate)],
        not_checked=[one for one in found if isinstance(one, NotChecked)],
    )


def _choose_model(probes: ServeProbes, endpoint: ServedEndpoint, wanted: str | None) -> list[Gate]:
    """Sets the endpoint's model: the one asked for, else the bundle's, else the only one."""
    names, own = endpoint.names, wanted or probes.served_name
    # Ollama lists name:latest, or another tag, for what is called name.
    ours = [name for name in names if name == own or name.startswith(f"{own}:")]
    if len(ours) == 1 or (wanted is None and len(names) == 1):
        endpoint.model = ours[0] if ours else names[0]
        if ours:
            own = endpoint.model
        gate = check("served-name", endpoint.model, "==", own, "" if ours else _NAME_DIFFERS)
        return judged([gate], {"served-name": "warn"})
    raise ServingError(
        f"{endpoint.api} serves {'several models' if ours else 'no model'} called {own}. "
        f"There are: {', '.join(names) or 'none'}. Say which with --model."
    )


def _ask(probes: ServeProbes, endpoint: ServedEndpoint, reporter: Reporter) -> Asked:
    questions = [Question(chat.messages, chat.prompt) for chat in probes.chats]

    def answer(question: Question) -> ServedReply | Failed:
        return endpoint.ask(question, probes.max_new_tokens)

    # The first alone: it finds out which fields the server takes.
    first = answer(questions[0])
    rest = _each(answer, questions[1:], reporter, "Asking the server")
    server = find_facts(endpoint)
    ids: list[list[int] | None] = [None] * len(questions)
    if probes.chats[0].messages:
        ids = _each(
            lambda question: chat_ids(endpoint, server.kind, question.messages),
            questions,
            reporter,
            "Reading its prompts",
        )
    return Asked(probes, server, [first, *rest], ids)


def _each(
    ask: Callable[[_Item], _Made], items: Sequence[_Item], reporter: Reporter, label: str
) -> list[_Made]:
    """`ask` of each, several at once, in order; the first error ends it."""
    made: list[_Made] = []
    pool = ThreadPoolExecutor(_CONCURRENCY, "serve-check")
    try:
        with reporter.task(label, len(items), "requests") as task:
            for one in pool.map(ask, items):
                made.append(one)
                task.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return made


def _tokenizer_gate(
    asked: Asked, endpoint: ServedEndpoint, reporter: Reporter
) -> Gate | NotChecked:
    """Ids where the server has /tokenize, else counts of tokens by completions."""
    texts = [text for text in asked.probes.texts if text.text]
    kind = asked.server.kind
    if tokenize(endpoint, kind, texts[0].text) is not None:
        found = _each(
            lambda one: tokenize(endpoint, kind, one.text), texts, reporter, "Reading its tokens"
        )
        return serve_prompts.tokenizer_gate(list(zip(texts, found, strict=True)))
    if kind == "Ollama":  # its completions put the chat template around the text
        return NotChecked("served-tokenizer", "Ollama has no /tokenize")
    chosen = [texts[row] for row in evenly(len(texts), _COUNTED_TEXTS)]
    counts = _each(lambda one: _count(endpoint, one), chosen, reporter, "Counting its tokens")
    known = [(one, count) for one, count in zip(chosen, counts, strict=True) if count is not None]
    if len(known) < len(chosen):
        reason = "server has no /tokenize, and its completions do not count tokens"
        return NotChecked("served-tokenizer", reason)
    return serve_prompts.counts_gate(known)


def _count(endpoint: ServedEndpoint, text: TextProbe) -> int | None:
    came = endpoint.ask(Question((), text.text), 1)
    return came.prompt_tokens if isinstance(came, ServedReply) else None


def _context_gate(asked: Asked, endpoint: ServedEndpoint) -> Gate | NotChecked:
    if asked.server.context_tokens is not None:
        return serve_prompts.context_gate(asked)
    return _long_request(asked.probes, endpoint)


def _long_request(probes: ServeProbes, endpoint: ServedEndpoint) -> Gate | NotChecked:
    """One prompt that fills the context, its length foretold by two short ones."""
    chat = probes.chats[0]

    def repeated(times: int) -> ServedReply | Failed:
        if not chat.messages:
            return endpoint.ask(Question((), chat.prompt + f"\n{chat.prompt}" * (times - 1)), 1)
        last = chat.messages[-1]
        content = "\n".join([last["content"]] * times)
        return endpoint.ask(Question([*chat.messages[:-1], last | {"content": content}], ""), 1)

    once, more = _prompt_tokens(repeated(1)), _prompt_tokens(repeated(1 + _REPEATS))
    if once is None or more is None or more <= once:
        return NotChecked("served-context", "server tells neither its context nor prompt lengths")
    each = (more - once) / _REPEATS
    times = 1 + int((probes.context_tokens - 1 - once) / each)
    wanted = round(once + each * (times - 1))
    return serve_prompts.long_request_gate(probes, _prompt_tokens(repeated(times)), wanted)


def _prompt_tokens(came: ServedReply | Failed) -> int | None:
    return came.prompt_tokens if isinstance(came, ServedReply) else None


def _sampling_gate(asked: Asked, endpoint: ServedEndpoint) -> Gate | NotChecked:
    """Without a word on sampling: what a client gets that does not know how it was evaluated."""
    chats = asked.probes.chats
    answered = [row for row, reply in enumerate(asked.replies) if isinstance(reply, ServedReply)]
    if not answered:
        return NotChecked("served-sampling", "server answers no probe")
    pairs = []
    for row in (answered[one] for one in evenly(len(answered), _SAMPLING_PROBES)):
        question = Question(chats[row].messages, chats[row].prompt)
        default = endpoint.ask(question, asked.probes.max_new_tokens, greedy=False)
        pairs.append((asked.replies[row], default))
    return serve_gates.sampling_gate(asked, pairs)

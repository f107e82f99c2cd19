"""Prompts packed into one sequence behind their shared prefix, and tokens tried after each.

There is no padding. The prompts of a chunk lie one after another in a single sequence of batch
size 1, and a mask lets every token see the shared prefix, its own prompt and its own ancestors
only (FAILURES.md F36: padded equals unpadded because nothing is padded). The prefix goes through
the model once; its keys and values are shared by every row of every chunk.

Letters: Q queries of this forward, K slots of the cache (prefix, earlier tokens, these),
V vocabulary, C candidates, L likeliest tokens.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

_PREFIX, _TRIED = -1, -2  # owners of cache slots that are no row's prompt
_MAX_HEAD_POSITIONS = 512  # bounds the Q x vocabulary tensor


@dataclass(eq=False)
class Node:
    """A row's prompt (`parent` None), or one token tried after a node, with what follows it.

    `greedy` is the likeliest next token, `log_p` the natural-log probabilities of the candidates
    as next token, `likeliest` the ids of the likeliest next tokens and `likeliest_logits` theirs,
    where they are kept. All are set once the node went through the model.
    """

    row: int
    position: int
    parent: "Node | None" = None
    token: int = -1
    chain: tuple[int, ...] = ()
    greedy: int = field(init=False)
    log_p: "NDArray[np.float64]" = field(init=False)
    likeliest: "NDArray[np.int64]" = field(init=False)
    likeliest_logits: "NDArray[np.float64]" = field(init=False)
    children: "dict[int, Node]" = field(default_factory=dict)


class SharedPrefix:
    """The tokens that all prompts begin with, gone through the model once."""

    def __init__(self, model: "PreTrainedModel", token_ids: Sequence[int]) -> None:
        import torch
        from transformers import DynamicCache

        self.model = model
        self.length = len(token_ids)
        self._cache = DynamicCache()
        if token_ids:
            with torch.inference_mode():
                model(
                    input_ids=torch.tensor([list(token_ids)], device=model.device),
                    past_key_values=self._cache,
                    use_cache=True,
                    logits_to_keep=1,
                )

    def cache(self) -> Any:
        """A copy of the keys and values, to be continued."""
        return copy.deepcopy(self._cache)


class PackedRows:
    """The prompts of one chunk in one sequence, grown token by token.

    Args:
        prefix: what every prompt begins with.
        prompts: the tokens of each row after the prefix, at least one each.
        candidates: the token ids whose log-probabilities are kept at every node.
        likeliest: of how many of the likeliest next tokens the logits are kept too.
    """

    def __init__(
        self,
        prefix: SharedPrefix,
        prompts: Sequence[Sequence[int]],
        candidates: Iterable[int],
        likeliest: int = 0,
    ) -> None:
        ids = sorted(set(candidates))
        self.column = {token: column for column, token in enumerate(ids)}
        self._candidates, self._likeliest = ids, likeliest
        self._prefix, self._model = prefix, prefix.model
        self._cache = prefix.cache()
        self._owners: list[int] = [_PREFIX] * prefix.length
        self.roots = [
            Node(row, prefix.length + len(prompt) - 1) for row, prompt in enumerate(prompts)
        ]
        self._plant(prompts)

    def grow(self, paths: Iterable[tuple[Node, Sequence[int]]]) -> None:
        """Try the tokens of each path after its node; those already tried cost nothing."""
        fresh: list[Node] = []
        for start, tokens in paths:
            node = start
            for token in tokens:
                if token not in node.children:
                    child = Node(node.row, node.position + 1, node, token)
                    node.children[token] = child
                    fresh.append(child)
                node = node.children[token]
        for first in range(0, len(fresh), _MAX_HEAD_POSITIONS):
            self._try(fresh[first : first + _MAX_HEAD_POSITIONS])

    def _plant(self, prompts: Sequence[Sequence[int]]) -> None:
        import numpy as np

        rows = np.repeat(np.arange(len(prompts)), [len(prompt) for prompt in prompts])
        start = len(self._owners)
        self._owners.extend(int(row) for row in rows)
        visible_QK = self._own_prompt(rows)
        visible_QK[:, start:] &= np.tri(len(rows), dtype=bool)
        ends = np.cumsum([len(prompt) for prompt in prompts]) - 1
        self._forward(
            [token for prompt in prompts for token in prompt],
            [self._prefix.length + place for prompt in prompts for place in range(len(prompt))],
            visible_QK,
            ends.tolist(),
            self.roots,
        )

    def _try(self, nodes: Sequence[Node]) -> None:
        import numpy as np

        for node in nodes:
            assert node.parent is not None
            node.chain = (*node.parent.chain, len(self._owners))
            self._owners.append(_TRIED)
        visible_QK = self._own_prompt(np.array([node.row for node in nodes]))
        for query, node in enumerate(nodes):
            visible_QK[query, list(node.chain)] = True
        self._forward(
            [node.token for node in nodes],
            [node.position for node in nodes],
            visible_QK,
            list(range(len(nodes))),
            nodes,
        )

    def _own_prompt(self, rows: "NDArray[np.int64]") -> "NDArray[np.bool_]":
        import numpy as np

        owners = np.array(self._owners)
        visible_QK: NDArray[np.bool_] = owners[None, :] == rows[:, None]
        visible_QK |= owners[None, :] == _PREFIX
        return visible_QK

    def _forward(
        self,
        tokens: list[int],
        positions: list[int],
        visible: "NDArray[np.bool_]",
        kept: list[int],
        nodes: Sequence[Node],
    ) -> None:
        import torch

        model, device = self._model, self._model.device
        _check_context(model, max(positions) + 1)
        dtype = model.get_input_embeddings().weight.dtype
        with torch.inference_mode():
            hidden = torch.from_numpy(~visible).to(device)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
            mask.masked_fill_(hidden, torch.finfo(dtype).min)
            logits = model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
                attention_mask=mask[None, None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=torch.tensor(kept, device=device),
            ).logits[0]
            self._read(logits, nodes)

    def _read(self, logits: "Tensor", nodes: Sequence[Node]) -> None:
        logits_QV = logits.float()
        greedy = logits_QV.argmax(-1).tolist()
        total_Q1 = logits_QV.logsumexp(-1, keepdim=True).double()
        log_p_QC = (logits_QV[:, self._candidates].double() - total_Q1).cpu().numpy()
        for node, token, log_p in zip(nodes, greedy, log_p_QC, strict=True):
            node.greedy, node.log_p = token, log_p
        if self._likeliest:
            found_QL, ids_QL = logits_QV.topk(min(self._likeliest, logits_QV.shape[1]))
            pairs = zip(found_QL.double().cpu().numpy(), ids_QL.cpu().numpy(), strict=True)
            for node, (found_L, ids_L) in zip(nodes, pairs, strict=True):
                node.likeliest_logits, node.likeliest = found_L, ids_L


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; every prompt keeps at least one of its own."""
    if not prompts:
        return 0
    shortest, low, high = min(map(len, prompts)), min(map(list, prompts)), max(map(list, prompts))
    length = next((i for i in range(shortest) if low[i] != high[i]), shortest)
    return min(length, shortest - 1)


def _check_context(model: "PreTrainedModel", length: int) -> None:
    """Positions beyond what the model was made for, or a window that the mask does not draw."""
    config = model.config.get_text_config()
    limits = {"max_position_embeddings": getattr(config, "max_position_embeddings", None)}
    if getattr(config, "use_sliding_window", True):
        limits["sliding_window"] = getattr(config, "sliding_window", None)
    for name, limit in limits.items():
        if limit is not None and length > limit:
            raise ModelError(
                f"A prompt with its answer has {length} tokens; the model's {name} is {limit}. "
                "Shorten the prompts (prepare.max_length_tokens, baseline.few_shot) or lower "
                "max_new_tokens."
            )

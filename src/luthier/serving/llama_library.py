"""llama.cpp's C interface, as the `xllamacpp` wheel exports it: the code that also serves.

Only for child processes (`gguf_quantizing`, `gguf_logits`): a crash in native code ends its
process. Declarations: `include/llama.h` and `ggml/include/ggml.h` of llama.cpp b11549, which is
what xllamacpp 2026.10.11549 holds. The wheel leaves out `llama_model_quantize`; the quantisers of
rows that it calls are there.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ServingError

if TYPE_CHECKING:
    import numpy as np

CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_threads": 4,
    "flash_attn_type": -1,
    "type_k": 1,
    "type_v": 1,
    "offload_kqv": True,
    "op_offload": True,
    "swa_full": True,
}
"""What `llama_context_default_params` of b11549 sets: another layout shows other values here."""

_FLASH_ATTENTION_OFF = 0
_TYPE_F32 = 0
_LOG_ERROR = 4  # enum ggml_log_level
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _ModelParams(ctypes.Structure):
    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int),
        ("load_mode", ctypes.c_int),
        ("lazy_mode", ctypes.c_int),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
        ("load_mtp", ctypes.c_bool),
    )


class _ContextParams(ctypes.Structure):
    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("n_rs_seq", ctypes.c_uint32),
        ("n_outputs_max", ctypes.c_uint32),
        ("n_outputs_max_per_seq", ctypes.c_uint32),
        ("n_threads", ctypes.c_int32),
        ("n_threads_batch", ctypes.c_int32),
        ("ctx_type", ctypes.c_int),
        ("rope_scaling_type", ctypes.c_int),
        ("pooling_type", ctypes.c_int),
        ("attention_type", ctypes.c_int),
        ("flash_attn_type", ctypes.c_int),
        ("rope_freq_base", ctypes.c_float),
        ("rope_freq_scale", ctypes.c_float),
        ("yarn_ext_factor", ctypes.c_float),
        ("yarn_attn_factor", ctypes.c_float),
        ("yarn_beta_fast", ctypes.c_float),
        ("yarn_beta_slow", ctypes.c_float),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float),
        ("cb_eval", ctypes.c_void_p),
        ("cb_eval_user_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int),
        ("type_v", ctypes.c_int),
        ("moe_cache_size", ctypes.c_size_t),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("embeddings", ctypes.c_bool),
        ("offload_kqv", ctypes.c_bool),
        ("no_perf", ctypes.c_bool),
        ("op_offload", ctypes.c_bool),
        ("swa_full", ctypes.c_bool),
        ("kv_unified", ctypes.c_bool),
        ("samplers", ctypes.c_void_p),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", ctypes.c_void_p),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            *(3 * [ctypes.c_int64]),
            ctypes.c_void_p,
        ],
    ),
    "llama_log_set": (None, [_LOG_CALLBACK, ctypes.c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_ModelParams, []),
    "llama_context_default_params": (_ContextParams, []),
    "llama_model_load_from_file": (ctypes.c_void_p, [ctypes.c_char_p, _ModelParams]),
    "llama_model_free": (None, [ctypes.c_void_p]),
    "llama_model_get_vocab": (ctypes.c_void_p, [ctypes.c_void_p]),
    "llama_vocab_n_tokens": (ctypes.c_int32, [ctypes.c_void_p]),
    "llama_init_from_model": (ctypes.c_void_p, [ctypes.c_void_p, _ContextParams]),
    "llama_free": (None, [ctypes.c_void_p]),
    "llama_get_memory": (ctypes.c_void_p, [ctypes.c_void_p]),
    "llama_memory_clear": (None, [ctypes.c_void_p, ctypes.c_bool]),
    "llama_batch_init": (_Batch, [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (ctypes.c_int32, [ctypes.c_void_p, _Batch]),
    "llama_get_logits_ith": (
        ctypes.POINTER(ctypes.c_float),
        [ctypes.c_void_p, ctypes.c_int32],
    ),
}


@cache
def library() -> ctypes.CDLL:
    """The native library, with every function used here declared.

    Raises:
        ServingError: `xllamacpp` is missing, or its build does not export these functions, or
            lays out their parameters in another way.
    """
    from luthier.serving.llama_server import require_llama_cpp

    require_llama_cpp()
    from xllamacpp import xllamacpp as native

    found = ctypes.CDLL(native.__file__)
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(found, name)
        except AttributeError:
            raise ServingError(_other_build(f"it does not export {name}")) from None
        function.restype, function.argtypes = result, arguments
    defaults = found.llama_context_default_params()
    for name, expected in CONTEXT_DEFAULTS.items():
        value = getattr(defaults, name)
        if value != expected:
            raise ServingError(_other_build(f"{name} is {value}, not {expected}, by default"))
    return found


def _other_build(what: str) -> str:
    return (
        f"xllamacpp: this build has another C interface ({what}). Install the version that "
        "Luthier was made with: python -m pip install xllamacpp==2026.10.11549"
    )


def quantize_rows(
    rows: "np.ndarray", kind: int, row_bytes: int, importance: "np.ndarray | None"
) -> "np.ndarray":
    """Quantise whole rows with llama.cpp's own code; other threads run meanwhile.

    Args:
        rows: (R, C) float32, contiguous.
        kind: the type to make, a number of `enum ggml_type`.
        row_bytes: of one row in that type.
        importance: (C,) float32, how much the error in each column counts; None: all the same.

    Returns:
        (R, row_bytes) uint8.
    """
    import numpy as np

    row_count, columns = rows.shape
    made = np.empty((row_count, row_bytes), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    size = library().ggml_quantize_chunk(
        kind, rows.ctypes.data, made.ctypes.data, 0, row_count, columns, weights
    )
    assert size == made.nbytes
    return made


class LlamaModel:
    """A GGUF loaded by llama.cpp on the CPU, for logits. A context manager.

    Its attention is the plain one and its cache float32. Matrices are multiplied by llama.cpp's
    own code for their type, which rounds activations to 16 or 8 bits as it does when serving.

    Args:
        context_tokens: of the longest row.
        outputs: positions asked for in one row, at most; each needs a row of logits in memory.

    Raises:
        ServingError: llama.cpp cannot load the file, or not with this context.
    """

    def __init__(
        self, gguf_path: Path, *, context_tokens: int, outputs: int, threads: int
    ) -> None:
        self._library = library()
        self._log = _LOG_CALLBACK(_print_errors)  # kept: the library calls it while we live
        self._library.llama_log_set(self._log, None)
        self._library.llama_backend_init()
        model = self._library.llama_model_default_params()
        model.n_gpu_layers = 0
        self._model = self._library.llama_model_load_from_file(str(gguf_path).encode(), model)
        if not self._model:
            raise ServingError(f"{gguf_path}: llama.cpp cannot load this file.")
        context = self._library.llama_context_default_params()
        context.n_ctx = context.n_batch = context_tokens
        context.n_outputs_max = outputs
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = _FLASH_ATTENTION_OFF
        context.type_k = context.type_v = _TYPE_F32
        context.offload_kqv = context.op_offload = False
        self._context = self._library.llama_init_from_model(self._model, context)
        if not self._context:
            raise ServingError(f"{gguf_path}: no context of {context_tokens:,} tokens for it.")
        self._batch = self._library.llama_batch_init(context_tokens, 0, 1)
        vocabulary = self._library.llama_model_get_vocab(self._model)
        self.vocabulary_tokens: int = self._library.llama_vocab_n_tokens(vocabulary)
        self._gguf_path = gguf_path

    def __enter__(self) -> "LlamaModel":
        return self

    def __exit__(self, *_: object) -> None:
        self._library.llama_batch_free(self._batch)
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def logits(self, token_ids: Sequence[int], positions: Sequence[int]) -> "np.ndarray":
        """Logits after the tokens at `positions` of one row, which is computed in one batch.

        Returns:
            (len(positions), V) float32.
        """
        import numpy as np

        if not positions:
            return np.empty((0, self.vocabulary_tokens), np.float32)
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        wanted, batch = frozenset(positions), self._batch
        batch.n_tokens = len(token_ids)
        for index, token in enumerate(token_ids):
            batch.token[index], batch.pos[index] = token, index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index in wanted
        status = self._library.llama_decode(self._context, batch)
        if status != 0:
            raise ServingError(
                f"{self._gguf_path}: llama.cpp cannot compute {len(token_ids)} tokens "
                f"(llama_decode: {status})."
            )
        rows = [
            np.ctypeslib.as_array(
                self._library.llama_get_logits_ith(self._context, position),
                (self.vocabulary_tokens,),
            )
            for position in positions
        ]
        return np.stack(rows)


def _print_errors(level: int, text: bytes, _data: object) -> None:
    if level == _LOG_ERROR:
        print(text.decode("utf-8", "replace"), end="", flush=True)  # noqa: T201

"""The program that serves a GGUF for `llama_server.LlamaServer`, a child process of it."""

import argparse
import os
import sys
from pathlib import Path


def _serve(arguments: argparse.Namespace) -> None:
    """Load, say where, wait until the parent lets go of standard input."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(arguments.gguf_path)
    params.hostnames, params.port = ["127.0.0.1"], arguments.port
    if arguments.model_name:
        params.model_alias, params.sampling.temp = {arguments.model_name}, 0.0
    params.n_ctx = arguments.context_tokens
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.warmup = params.fit_params = params.ui = params.endpoint_slots = False
    params.cache_ram_mib = 0
    params.verbosity = 1  # errors
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(f"xllamacpp: {error}")
    partial = arguments.address_path.with_suffix(".part")
    partial.write_text(server.listening_address, encoding="utf-8")
    partial.replace(arguments.address_path)
    sys.stdin.buffer.read()
    os._exit(0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a GGUF until standard input closes.")
    parser.add_argument("gguf_path", type=Path)
    parser.add_argument("--address-path", type=Path, required=True)
    for option in ("--context-tokens", "--threads", "--port"):
        parser.add_argument(option, type=int, required=True)
    parser.add_argument("--model-name")
    return parser.parse_args()


if __name__ == "__main__":
    _serve(_arguments())

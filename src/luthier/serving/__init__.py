"""Serving a merged model: GGUF, Ollama, vLLM, and parity measured through the real llama.cpp."""

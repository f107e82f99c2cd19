"""Base models, tokenizers, chat templates and LoRA. The only callers of `from_pretrained`."""

"""Should this be fine-tuned, prompted or given retrieval? The tree, its rules of thumb, advice."""

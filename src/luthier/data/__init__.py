"""Raw files to tokenised rows: readers, row formats, cleaning, splits, tokens, checks."""

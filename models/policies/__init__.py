"""The language model that is trained: loading, chat template, dtypes, scoring."""

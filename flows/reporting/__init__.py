"""Reports, comparisons, figures, and export with model cards."""

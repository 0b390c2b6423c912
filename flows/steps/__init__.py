"""One function per step of the algorithm, the results of a run, and waiting for annotators."""

"""Training, cross-fitting and scoring by an evaluator, and the preference pairs made of its scores."""

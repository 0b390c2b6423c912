"""Fixtures of whole runs."""

from tests.support.experiments import *  # noqa: F403

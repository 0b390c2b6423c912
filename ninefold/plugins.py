"""What plugins import: the contracts of the extension points, and the types that they speak in.

A plugin of a package of your own is a subclass with a literal kind `package/name`, found by an entry point:

    [project.entry-points."ninefold.plugins"]
    my_lab = "my_lab.strategies"          # a module to import

or, for a folder that is no package yet, by NINEFOLD_PLUGINS=my_lab.strategies in the environment. Raise its `version` when
it computes something else than before. `ninefold kinds` lists what was found.
"""

from models.acquisition.base import Acquisition, Needs, Pool, SelectedRows
from models.acquisition.pair_rules.base import CandidateScores, PairIndices, PairRule
from models.acquisition.pairwise import PairAcquisition, Pairs
from models.core.arrays import FloatArray
from models.core.data import Demonstration, Prompt, Response, ScoredExample
from models.core.errors import ConfigError, NinefoldError
from models.core.external import API
from models.core.money import MicroUsd
from models.core.registry import Frozen, OneOf, Plugin
from models.core.rubric import Rubric
from models.embeddings.base import Embedding
from models.evaluators.base import Evaluator, Examples, FitContext, check_trainable
from models.generators.base import Generator
from models.oracles.base import (
    AnnotationTask,
    CostEstimate,
    MaybeBilledError,
    Oracle,
    PairOracle,
    QuestionRejected,
    RequestRejected,
    RetryableError,
    TokenCounter,
    Verdict,
)
from models.policies.checkpoint import Checkpoint
from models.sources.base import Prompts, PromptSource

__all__ = [
    "API",
    "Acquisition",
    "AnnotationTask",
    "CandidateScores",
    "Checkpoint",
    "ConfigError",
    "CostEstimate",
    "Demonstration",
    "Embedding",
    "Evaluator",
    "Examples",
    "FitContext",
    "FloatArray",
    "Frozen",
    "Generator",
    "MaybeBilledError",
    "MicroUsd",
    "Needs",
    "NinefoldError",
    "OneOf",
    "Oracle",
    "PairAcquisition",
    "PairIndices",
    "PairOracle",
    "PairRule",
    "Pairs",
    "Plugin",
    "Pool",
    "Prompt",
    "PromptSource",
    "Prompts",
    "QuestionRejected",
    "RequestRejected",
    "Response",
    "RetryableError",
    "Rubric",
    "ScoredExample",
    "SelectedRows",
    "TokenCounter",
    "Verdict",
    "check_trainable",
]

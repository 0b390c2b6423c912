"""The job of recovery.py in distilabel 1.5.3, run by its own Python: rows → an OpenAI-compatible judge → a last step.

    python recovery_distilabel.py JOB.json

JOB.json names the server, the cache folder, the rows, the factor of the last step, and the file to write.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distilabel.models import OpenAILLM  # type: ignore[import-not-found]
from distilabel.pipeline import Pipeline  # type: ignore[import-not-found]
from distilabel.steps import LoadDataFromDicts, Step, StepInput  # type: ignore[import-not-found]
from distilabel.steps.tasks import TextGeneration  # type: ignore[import-not-found]


class Rescale(Step):  # type: ignore[misc]
    """The last step: the score in the judge's reply, times a factor."""

    factor: float = 1.0

    @property
    def inputs(self) -> list[str]:
        """What it reads."""
        return ["generation"]

    @property
    def outputs(self) -> list[str]:
        """What it adds."""
        return ["score"]

    def process(self, rows: StepInput) -> Iterator[Any]:
        """Yield the rows with their scores; none where there is no reply."""
        for row in rows:
            found = re.findall(r"Score: (\d)", row["generation"] or "")
            row["score"] = int(found[0]) * self.factor if found else None
        yield rows


def main() -> None:
    """Run the job and write the scores by row."""
    job = json.loads(Path(sys.argv[1]).read_text())
    rows = [{"row": number, "instruction": text} for number, text in enumerate(job["questions"])]
    with Pipeline(name="recovery", cache_dir=job["cache"]) as pipeline:
        load = LoadDataFromDicts(name="load", data=rows, batch_size=job["batch"])
        llm = OpenAILLM(model="judge", base_url=job["url"], api_key="loopback", max_retries=0, timeout=60)
        judge = TextGeneration(name="judge", llm=llm, input_batch_size=job["batch"], use_system_prompt=False)
        last = Rescale(name="rescale", factor=job["factor"], input_batch_size=job["batch"])
        load >> judge >> last
    made = pipeline.run(use_cache=True)["default"]["train"]
    Path(job["out"]).write_text(json.dumps({str(row["row"]): row["score"] for row in made}))


if __name__ == "__main__":
    main()

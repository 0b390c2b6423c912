"""`ninefold init` writes an experiment that plans, whatever oracle is asked for, or writes nothing."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.config.experiment import Experiment
from flows.config.loading import load
from models.core.errors import ConfigError

COMMAND = CliRunner()


def init(*arguments: str) -> str:
    done = COMMAND.invoke(app, ["init", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize(
    ("options", "kind", "evaluation"),
    [
        ((), "pairwise_from_scores", "gold"),
        (("--people",), "human", "human"),
        (
            ("--judge", "some: judge #2", "--prices", "0.15,0.6", "--base-url", "https://h/v1"),
            "llm_pairwise_judge",
            "llm_judge",
        ),
    ],
)
def test_what_it_writes_is_an_experiment_whose_plan_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], kind: str, evaluation: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of mine")
    folder = tmp_path / "My Lab's 1st"
    shown = init(str(folder), *options)
    experiment = load(Experiment, folder / "experiment.yaml")
    assert experiment.name == "my-lab-s-1st"
    assert (experiment.labelling.oracle.kind, experiment.evaluation.oracle.kind) == (kind, evaluation)
    assert "at most 24 queries and $1.00" in shown
    assert f"ninefold run {shlex.quote(str(folder / 'experiment.yaml'))}\n" in shown


def test_a_judges_own_prices_model_and_server_are_in_the_file(tmp_path: Path) -> None:
    judge = ("--judge", "a: b", "--prices", "0.15,0.6", "--base-url", "https://h/v1", "--api-key-env", "MY_KEY")
    assert "to do       environment variable MY_KEY is not set" in init(str(tmp_path / "x"), *judge)
    oracle = load(Experiment, tmp_path / "x" / "experiment.yaml").labelling.oracle.model_dump()
    endpoint = oracle["endpoint"]
    assert (endpoint["model"], endpoint["base_url"], endpoint["api_key_env"]) == ("a: b", "https://h/v1", "MY_KEY")
    assert (endpoint["prices"]["input"], endpoint["prices"]["output"]) == (150_000, 600_000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--judge", "m"), "--prices '' must be"),
        (("--judge", "m", "--prices", "inf,1"), "--prices 'inf,1' must be"),
        (("--judge", "m", "--prices", "-1,1"), "--prices '-1,1' must be"),
        (("--judge", "m", "--prices", "1,1", "--people"), "two oracles"),
        (("--judge", "m", "--prices", "1,1", "--api-key-env", "AWS_SECRET"), "api_key_env=AWS_SECRET is no oracle's"),
        (("--judge", "m", "--prices", "1,1", "--base-url", "ftp://h"), "base_url"),
    ],
)
def test_what_cannot_be_is_refused_before_a_file_is_written(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        init(str(tmp_path / "x"), *options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already: name a new folder"):
        init(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

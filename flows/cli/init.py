"""`ninefold init DIR`: write an experiment of the user's own, with sample prompts, and show its plan."""

import json
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

_TOPICS = ("a rainbow", "inflation", "a vaccine", "the tides", "an interest rate", "a black hole", "yeast", "a bicycle")
_READERS = ("a child of seven", "a new colleague", "my grandmother", "a physics student", "a busy manager", "a poet")
_HELD_OUT = ("photosynthesis", "a leap year", "static electricity", "a mortgage")
_DEMONSTRATIONS = {
    "the seasons": "The Earth's axis is tilted, so each half of it gets more direct sunlight for part of the year.",
    "an echo": "Sound bounces off a wall and comes back to you a moment later.",
    "rust": "Iron joins with oxygen and water, and the new stuff is brown and crumbles.",
    "a budget": "You decide beforehand what to spend on each thing, so that the money lasts.",
    "gravity": "Everything pulls on everything else; the Earth is large, so it pulls us down.",
    "a password": "It is a secret that shows a computer that you are you.",
    "compost": "Small living things eat old plants and leave soil behind.",
    "a patent": "It lets an inventor be the only one to sell an idea for some years.",
}

_EXPERIMENT = """\
# An experiment of your own. `ninefold plan {name}/experiment.yaml` says what it will do and cost; nothing is spent by that.
name: {name}

prompts:
  kind: files
  pool: pool.txt                        # one prompt a line, or JSON lines with a "prompt"; paths are relative to this file
  held_out: held_out.txt                # other prompts: the evaluation's
  demonstrations: demonstrations.jsonl  # good responses, for SFT first; without them the model itself is M_1

policy:
  model: smollm2-135m-instruct          # packaged; or a directory, or a hub id such as org/name@revision
  template: chat
  sft: {{max_length: 256}}

generation: {{kind: transformers, samples: 4, max_new_tokens: 48}}   # responses to each prompt
embedding: {{kind: sentence}}

labelling:
  acquisition: {{kind: random_pairs}}     # which responses the oracle is asked about: `ninefold kinds acquisition`
  oracle:
{oracle}
  rubric: {{name: additive}}              # what is judged
  queries: {queries}                          # hard caps, whatever happens
  max_micro_usd: {max_micro_usd}

evaluator: {{kind: linear}}              # the proxy reward model: `ninefold kinds evaluators`
gate: {{on_failure: continue}}           # few labels can hardly show that the evaluator is better than chance
dpo: {{max_length: 256}}

evaluation:
{evaluation}  samples: 2
  max_micro_usd: {max_micro_usd}
"""
_SIMULATED = """\
    kind: pairwise_from_scores          # SIMULATED: it likes enthusiasm, whatever the rubric says. `ninefold init --judge`
    inner: {kind: gold, micro_usd: 0}   # or `--people` write a real one"""
_JUDGE = """\
    kind: {kind}                     # an LLM judge
    endpoint:
      model: {model}
      base_url: {url}
      api_key_env: {key}            # the environment variable that holds the key
      temperature: 0                    # null for reasoning models, which take none
      prices: {{input: {input}, output: {output}}}   # micro-dollars per million tokens"""
_PEOPLE = """\
    kind: human                         # `ninefold labels export --queue` or Label Studio show people the pairs
    task: pairwise
    micro_usd: 0                        # for one judgement"""
_POINTWISE = {
    "simulated": "  oracle: {kind: gold, micro_usd: 0}   # SIMULATED\n",
    "people": "  oracle: {kind: human, micro_usd: 0}\n",
}


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder; its name becomes the experiment's.")],
    *,
    judge: Annotated[str, typer.Option(metavar="MODEL", help="An LLM judge, as its server calls it.")] = "",
    base_url: Annotated[str, typer.Option(help="Its OpenAI-compatible server.")] = "https://api.openai.com/v1",
    api_key_env: Annotated[str, typer.Option(help="The environment variable that holds its key.")] = "OPENAI_API_KEY",
    prices: Annotated[
        str, typer.Option(metavar="IN,OUT", help="Its dollars per million input and output tokens; 0,0 if it is free.")
    ] = "",
    people: Annotated[bool, typer.Option("--people", help="People are the oracle.")] = False,
) -> None:
    """Write an experiment of your own with sample prompts into a new folder, and show what it would cost."""
    import yaml

    from flows.config.experiment import Experiment
    from flows.config.loading import load, validated
    from flows.planning.run import plan
    from flows.runtime.environment import prepare_libraries
    from models.core.errors import ConfigError, NinefoldError

    if folder.exists():
        raise ConfigError(f"{folder} is there already: name a new folder")
    if judge and people:
        raise ConfigError("--judge and --people are two oracles: choose one")
    name = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-") or "mine"
    text = _written(name, judge, base_url, api_key_env, prices, people=people)
    validated(Experiment, yaml.safe_load(text), str(folder))
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(text, encoding="utf-8")
    pool = [f"Explain {topic} to {reader}." for topic in _TOPICS for reader in _READERS]
    (folder / "pool.txt").write_text("\n".join(pool) + "\n", encoding="utf-8")
    held_out = [f"Explain {topic} to {reader}." for topic in _HELD_OUT for reader in _READERS[:4]]
    (folder / "held_out.txt").write_text("\n".join(held_out) + "\n", encoding="utf-8")
    (folder / "demonstrations.jsonl").write_text(_demonstrations(), encoding="utf-8")
    typer.echo(f"written     {folder}/experiment.yaml, pool.txt, held_out.txt, demonstrations.jsonl")
    prepare_libraries()
    try:
        typer.echo(str(plan(load(Experiment, folder / "experiment.yaml"))))
    except (NinefoldError, OSError) as error:
        typer.echo(f"to do       {error}")
    typer.echo(f"next        edit the files, then: ninefold run {shlex.quote(str(folder / 'experiment.yaml'))}")


def _written(name: str, judge: str, base_url: str, api_key_env: str, prices: str, *, people: bool) -> str:
    """Return the experiment file's text; raise ConfigError if the prices cannot be read or are missing."""
    from models.core.errors import ConfigError

    given = {"name": name, "queries": 24, "max_micro_usd": 1_000_000}
    if judge:
        try:
            each = [round(float(price) * 1_000_000) for price in prices.split(",")]
        except (ValueError, OverflowError):  # no number, or infinity
            each = []
        if len(each) != 2 or min(each) < 0:
            raise ConfigError(
                f"--prices {prices!r} must be the judge's dollars per million input and output tokens, such as 0.15,0.60, "
                "or 0,0 if it is free: a budget in dollars is kept by them"
            )
        quoted = {"model": json.dumps(judge), "url": json.dumps(base_url), "key": json.dumps(api_key_env)}
        server = quoted | {"input": each[0], "output": each[1]}
        scores = _JUDGE.format(kind="llm_judge", **server)
        return _EXPERIMENT.format(
            **given, oracle=_JUDGE.format(kind="llm_pairwise_judge", **server), evaluation=f"  oracle:\n{scores}\n"
        )
    kind = "people" if people else "simulated"
    return _EXPERIMENT.format(**given, oracle=_PEOPLE if people else _SIMULATED, evaluation=_POINTWISE[kind])


def _demonstrations() -> str:
    rows = (
        {"prompt": f"Explain {topic} to {_READERS[number % len(_READERS)]}.", "response": response}
        for number, (topic, response) in enumerate(_DEMONSTRATIONS.items())
    )
    return "".join(json.dumps(row) + "\n" for row in rows)

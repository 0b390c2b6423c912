"""`ninefold evaluate`: run MMLU, BBH, AlpacaEval 2, RewardBench and others on a finished run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.terminal import UserError, confirm

if TYPE_CHECKING:
    from flows.evaluation.alpaca_eval import AlpacaEvalConfig

AVERAGED = "paper"  # the suite whose rows are averaged, as the paper does


def evaluate(
    name: Annotated[str, typer.Argument(help="The run's name.")],
    *,
    suite: Annotated[
        str,
        typer.Option(
            help="paper (alpaca_eval, MMLU with 5 and 0 shots), alpaca_eval, mmlu, bbh, ifeval, all these, or rewardbench."
        ),
    ] = "",
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:SHOTS]", help="A task of lm-evaluation-harness; may be repeated.")
    ] = None,
    tasks_from: Annotated[Path | None, typer.Option(help="A folder of task files of your own.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Questions to a task at most; 0: all.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    judge: Annotated[
        Path | None, typer.Option(help="AlpacaEval's judge and reference, a YAML file; without, the published ones.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="RewardBench's pairs, a JSON file; without, the published ones.")
    ] = None,
    max_micro_usd: Annotated[
        int, typer.Option(min=0, help="Micro-dollars that AlpacaEval's judge may cost.")
    ] = 40_000_000,
    concurrency: Annotated[int, typer.Option(min=1, help="Judgements at once.")] = 8,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before anything is bought.")] = False,
) -> None:
    """Let a finished run's M_1 and M_2, or its evaluator, take benchmarks, and log them to its MLflow run.

    Only AlpacaEval buys anything: it says what, and asks first. Its judgements are in the ledger, and are not bought twice.
    """
    from flows.runtime.environment import prepare_flows
    from flows.runtime.prefect_server import admitted

    prepare_flows()
    from flows.benchmarks import COLUMNS, SUITES, benchmarks, cells
    from flows.config.loading import load
    from flows.evaluation.alpaca_eval import AlpacaEvalConfig
    from flows.evaluation.reward_bench import NAME as REWARDBENCH
    from flows.evaluation.reward_bench import RewardBenchConfig
    from flows.reporting.export import load_finished_run
    from models.benchmarks.lm_eval import Task
    from models.oracles.alpaca_eval import AlpacaEval
    from tasks.evaluation.alpaca_eval import RAW

    if suite and suite not in SUITES:
        raise UserError(f"no suite {suite!r}: there are {', '.join(SUITES)}")
    named = [*SUITES.get(suite, ()), *(task or [])]
    if not named:
        raise UserError(f"name what to take: --suite {'|'.join(SUITES)}, or --task NAME[:SHOTS]")
    load_finished_run(name)
    tasks = [Task.parse(text, limit=limit, folder=tasks_from) for text in named if text not in (RAW, REWARDBENCH)]
    reward_bench = RewardBenchConfig(pairs=pairs) if REWARDBENCH in named else None
    alpaca_eval = None
    if RAW in named:
        asked = load(AlpacaEval, judge) if judge else AlpacaEval()
        alpaca_eval = AlpacaEvalConfig(judge=asked, limit=limit, max_micro_usd=max_micro_usd, concurrency=concurrency)
        _confirm(alpaca_eval, yes=yes)
    with admitted():
        rows = benchmarks(
            name,
            tasks,
            alpaca_eval=alpaca_eval,
            reward_bench=reward_bench,
            average=suite == AVERAGED,
            batch_size=batch_size,
        )
    for row in (COLUMNS, *map(cells, rows)):
        typer.echo("  ".join(f"{cell:14}" for cell in row).rstrip())


def _confirm(alpaca_eval: "AlpacaEvalConfig", *, yes: bool) -> None:
    """Say what will be bought, and raise UserError if the user does not agree."""
    from models.core.money import dollars

    alpaca_eval.check()
    judgements, price = alpaca_eval.estimate()
    typer.echo(
        f"AlpacaEval: {judgements} judgements by {alpaca_eval.judge.endpoint.model} will be bought, less those in "
        f"the ledger; expected {dollars(price.micro_usd)}, at most {dollars(alpaca_eval.max_micro_usd)}"
    )
    confirm(yes=yes)

"""Dataset and model cards of an exported run: lineage, cost, quality, limits."""

from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from flows.config.experiment import Experiment
from flows.reporting.schema import RunReport
from models.core.money import dollars
from models.metrics.intervals import Interval
from models.policies.resolve import PACKAGED

if TYPE_CHECKING:
    from huggingface_hub import CardData

_PAPER = "[arXiv 2407.02119](https://arxiv.org/abs/2407.02119)"
_COLUMNS = {
    "pairs": "`prompt`, `chosen`, `rejected`: preference pairs as DPO was trained on them in the last round. `provenance` "
    "says who prefers: `oracle` (the oracle), `proxy` (the evaluator) or `demonstration`; scores are in that judge's units.",
    "judgements": "every query in order: the response, or the response and the one it was held `against`; the oracle's "
    "`score`, its price (`micro_usd`, as if this run had bought it alone), `status` (`quarantined` replies could not be "
    "read), and the `utility` by which the strategy chose it, with the `components` of it.",
    "scores": "every response of the last round with the evaluator's `score` and the `std` of its ensemble; `logprob` is "
    "the response's log-probability under the policy that wrote it, in nats.",
}


def dataset_card(config: Experiment, report: RunReport, rows: dict[str, int]) -> str:
    """Return the dataset's card; its head makes the tables loadable by name."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        tags=["preference", "dpo", "ninefold"],
        size_categories=_size(max(rows.values())),
        configs=[
            {"config_name": name, "data_files": [{"split": "train", "path": f"{name}/train.parquet"}]} for name in rows
        ],
    )
    tables = [f"- **{name}** ({count:,} rows): {_COLUMNS[name]}" for name, count in rows.items()]
    return _card(
        data,
        f"{config.name}: preference data",
        ["## Tables", "", *tables, "", *_bought(config, report)],
        config,
        report,
    )


def evaluator_card(config: Experiment, report: RunReport) -> str:
    """Return the card of the evaluator (proxy reward model)."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(tags=["reward-model", "ninefold", config.evaluator.kind_name()], base_model=_hub_id(config))
    view = f", on features of view `{config.evaluator.feature_view}`" if config.evaluator.feature_view else ""
    use = [
        "## Use",
        "",
        f"A `{config.evaluator.kind_name()}` evaluator of Ninefold{view}; `evaluator.json` holds its settings. "
        "It labels responses like those it was trained on: prompts of the same kind, written by the policy below. It is no "
        "general judge of quality, and optimising a policy against it far beyond the KL of this run exploits its errors.",
        "",
    ]
    return _card(
        data, f"{config.name}: evaluator", [*use, *_agreement(report), *_bought(config, report)], config, report
    )


def policy_card(config: Experiment, report: RunReport, trained: Sequence[str]) -> str:
    """Return the card of the policy, which was `trained` in these ways, in order."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        tags=["ninefold", *dict.fromkeys(name.lower() for name in trained)],
        base_model=_hub_id(config),
        library_name="transformers",
        pipeline_tag="text-generation",
    )
    found = report.policy
    judge = report.evaluation_oracle + (" (simulated)" if report.evaluation_oracle_simulated else "")
    compared = report.pairwise_judge
    winner = judge if compared is None else compared.oracle + (" (simulated)" if compared.simulated else "")
    lines = [
        "## Use",
        "",
        f"`{config.policy.model}` after {' and '.join(trained)} ({_how(config)}); prompts are rendered by template "
        f"`{config.policy.template}`. Made to be compared with other arms of the same experiment. It was held against M_1, "
        f"the policy before {trained[-1]}, on the held-out prompts of one task by one judge; nothing is known of its "
        "safety or of other tasks.",
        "",
        "## Evaluation",
        "",
        f"- win rate against M_1 by {winner}: {_shown(found.win_rate)}",
        f"- judge's mean score: {found.oracle_mean_before:.3f} → {found.oracle_mean_after:.3f}",
        f"- KL to M_1: {found.kl:.2f} nats per answer",
        "",
    ]
    return _card(
        data, f"{config.name}: policy", [*lines, *_agreement(report), *_bought(config, report)], config, report
    )


def _how(config: Experiment) -> str:
    whole = [
        name
        for name, schedule in (("SFT", config.policy.sft), (config.dpo.algorithm.upper(), config.dpo))
        if schedule.lora is None
    ]
    return "LoRA, merged" if not whole else f"{' and '.join(whole)} on every weight"


def _card(data: "CardData", title: str, lines: Sequence[str], config: Experiment, report: RunReport) -> str:
    lineage = [
        "## Lineage",
        "",
        f"- experiment `{report.name}`, arm `{report.arm}`, MLflow run `{report.mlflow_run}`; selection seed "
        f"{report.selection_seed}, training seed {report.training_seed}",
        f"- base model `{config.policy.model}` ({report.artifacts['policy']['weights']})",
        f"- prompts: `{config.prompts.kind_name()}`. {config.prompts.terms}",
        f"- method: {_PAPER}; strategy `{report.strategy}`, evaluator `{config.evaluator.kind_name()}`, "
        f"β = {config.dpo.beta}",
        "",
    ]
    return "\n".join(["---", data.to_yaml(), "---", "", f"# {title}", "", *lines, *lineage])


def _bought(config: Experiment, report: RunReport) -> list[str]:
    oracle = report.oracle + (", **simulated**" if report.oracle_simulated else "")
    return [
        "## Budget",
        "",
        f"- oracle: {oracle}; criterion `{config.labelling.rubric.name}`",
        f"- {report.queries} queries, {dollars(report.micro_usd)}; {report.proxy_pairs} pairs by the evaluator, "
        f"{report.oracle_pairs} by the oracle",
        *(["- **the labels were shuffled: a control, not to be used**"] if report.labels_shuffled else []),
        "",
    ]


def _agreement(report: RunReport) -> list[str]:
    if report.evaluator is None:
        return []
    return [
        "## Agreement with the oracle",
        "",
        f"- pair accuracy on held-out prompts: {_shown(report.evaluator.pair_accuracy)}",
        f"- the same, trained on shuffled labels: {_shown(report.evaluator.shuffled_pair_accuracy)}",
        "",
    ]


def _shown(found: Interval) -> str:
    return "not known" if isnan(found.mean) else f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _hub_id(config: Experiment) -> str | None:
    """Return the base model as the hub knows it; none for a packaged model or a folder."""
    local = config.policy.model == PACKAGED or Path(config.policy.model).expanduser().is_dir()
    return None if local else config.policy.model.partition("@")[0]


def _size(rows: int) -> str:
    bounds = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
    return next((name for most, name in bounds.items() if rows < most), "1M<n<10M")

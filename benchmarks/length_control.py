"""Length-controlled win rates from recorded annotations of AlpacaEval 2, beside those that its leaderboard publishes.

    pip download --no-deps alpaca-eval==0.6.6 && unzip alpaca_eval-0.6.6-*.whl -d alpaca_eval
    python benchmarks/length_control.py labels.parquet --leaderboard \\
        alpaca_eval/alpaca_eval/leaderboards/data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv

`labels.parquet` has a row for each instruction and model: instruction, response, generator, label (the annotator's
probability that the response beats the baseline's) and price_usd (of that annotation). The baseline's answers are not among
them: their lengths are read off the prices, which count the tokens of both answers. The published method also weighs in
annotations of gamed models (λ = 0.2), which are not here either. An instruction's difficulty is fitted to all models
together, as theirs is. The last line is JSON.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.core.arrays import FloatArray
from models.metrics.length_control import logistic
from models.policies.checkpoint import Checkpoint
from models.policies.resolve import PACKAGED, locate

BASELINE = "gpt4_1106_preview"
MICRO_USD_PER_TOKEN = 10.0


def main() -> None:
    """Fit every model's rate and print it beside the published one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--leaderboard", type=Path, required=True)
    given = parser.parse_args()
    published = pd.read_csv(given.leaderboard, index_col=0)
    rows = pd.read_parquet(given.labels)
    rows["characters"] = rows.response.str.len()
    base = rows.instruction.map(baseline_characters(rows, float(published["avg_length"][BASELINE])))
    rows["longer_by"] = rows.characters - base
    rows["leans"] = np.tanh(rows.longer_by / rows.groupby("generator").longer_by.transform("std"))
    rows["difficulty"] = difficulty(rows)
    table = pd.DataFrame([rates(name, of) for name, of in rows.groupby("generator")]).set_index("generator")
    table["published"] = published.length_controlled_winrate.reindex(table.index)
    table["published_raw"] = published.win_rate.reindex(table.index)
    table = table.dropna().sort_values("published")
    print(table.round(1).to_string())
    print(json.dumps(summary(table)))


def baseline_characters(rows: pd.DataFrame, mean: float) -> "pd.Series[float]":
    """Return the length of the baseline's answer to each instruction; their `mean` is published.

    An annotation's price is that of its tokens: the template, the instruction, the response, the baseline's answer.
    """
    tokenizer = Checkpoint(locate(PACKAGED).source).load_tokenizer()
    tokens = np.array([len(ids) for ids in tokenizer(rows.response.tolist())["input_ids"]], dtype=np.float64)
    paid = rows.price_usd * 1e6 / MICRO_USD_PER_TOKEN
    priced = paid.notna()
    within = pd.DataFrame({"paid": paid, "tokens": tokens, "of": rows.instruction})[priced]
    apart = within[["paid", "tokens"]] - within.groupby("of")[["paid", "tokens"]].transform("mean")
    slope = float((apart.paid * apart.tokens).sum() / (apart.tokens**2).sum())  # of the annotator's tokens to ours
    rest = (within.paid - slope * within.tokens).groupby(within.of).median()
    asked = [len(ids) for ids in tokenizer(rest.index.tolist())["input_ids"]]
    rest -= slope * np.array(asked)
    per_token = float(rows.characters.sum() / (slope * tokens.sum()))
    template = rest.mean() - mean / per_token
    return ((rest - template).clip(lower=1.0) * per_token).rename("characters")


def difficulty(rows: pd.DataFrame) -> FloatArray:
    """Return each row's instruction's effect on the logit, fitted to all models at once with a standard normal prior."""
    model, instruction = (rows[name].astype("category").cat.codes.to_numpy() for name in ("generator", "instruction"))
    models, instructions = int(model.max()) + 1, int(instruction.max()) + 1
    leans, won = rows.leans.to_numpy(), rows.label.to_numpy()

    def loss(found: FloatArray) -> tuple[float, FloatArray]:
        level, length, effect = np.split(found, [models, 2 * models])
        logit = level[model] + length[model] * leans + effect[instruction]
        error = expit(logit) - won
        slope = [
            np.bincount(model, error, models),
            np.bincount(model, error * leans, models),
            np.bincount(instruction, error, instructions) + effect,
        ]
        return float((np.logaddexp(0, logit) - won * logit).sum() + effect @ effect / 2), np.concatenate(slope)

    start = np.zeros(2 * models + instructions)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    return np.asarray(found[2 * models :][instruction])


def rates(name: object, of: pd.DataFrame) -> dict[str, Any]:
    """Return a model's win rates in per cent: raw, at equal length, and at equal length given the difficulty."""
    won, ones, weights = of.label.to_numpy(), np.ones(len(of)), np.ones((1, len(of)))
    alone = logistic(np.stack([ones, of.leans], axis=1), won, weights)[0]
    level, _, hardness = logistic(np.stack([ones, of.leans, of.difficulty], axis=1), won, weights)[0]
    whole = expit(level + hardness * of.difficulty.to_numpy()).mean()
    return {
        "generator": name,
        "raw": 100 * won.mean(),
        "of two models alone": 100 * expit(alone[0]),
        "with difficulty": 100 * whole,
    }


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Return how far the rates are from the published ones, in points, over all models and without the gamed one."""
    honest = table.drop(index="gpt4_gamed", errors="ignore")
    found: dict[str, Any] = {
        "models": len(table),
        "raw, largest difference to the published raw": float((table.raw - table.published_raw).abs().max()),
    }
    for name in ("raw", "of two models alone", "with difficulty"):
        found[name] = {
            "mean difference": round(float((honest[name] - honest.published).abs().mean()), 2),
            "largest": round(float((honest[name] - honest.published).abs().max()), 2),
            "rank correlation": round(float(honest[name].corr(honest.published, method="spearman")), 4),
        }
    return found


if __name__ == "__main__":
    main()

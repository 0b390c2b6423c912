"""The trainers: weights move the right way, the same seed gives the same bytes, training sees the text that scoring sees."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from models.core import progress
from models.core.data import Demonstration, Pair
from models.evaluators.reward_head import RewardHead
from models.policies.checkpoint import Checkpoint
from models.training.config import Lora
from models.training.dpo import DPO, reference_logprob, train_dpo
from models.training.kto import train_kto
from models.training.orpo import train_orpo
from models.training.sft import SFT, train_sft
from models.training.trainer import trainer_kwargs

GOOD, BAD = "warm witty superb delight", "dull boring awful mess"
PAIRS = [
    Pair("p", prompt, f"{GOOD} {word}", f"{BAD} {word}", 1.0, 0.0, "proxy")
    for prompt in ("the film is", "the story is a", "good acting and")
    for word in ("film", "tale", "plot", "cast")
]
LORA = Lora(r=8, alpha=16)


def dpo(start: Checkpoint, pairs: list[Pair], recipe: DPO, folder: Path, seed: int = 0) -> dict[str, float]:
    reference = reference_logprob(start.load_cached(), pairs)
    return train_dpo(start.load_copy(), pairs, reference, recipe, folder=folder, seed=seed)


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.iterdir()))).hexdigest()


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_sft_makes_the_demonstrations_likelier(tiny_checkpoint: Checkpoint, tmp_path: Path, template: Any) -> None:
    start = Checkpoint(tiny_checkpoint.source, (), "float32", template)
    shown = [Demonstration(p.prompt, p.chosen) for p in PAIRS]
    before = start.load_copy().likelihood([(d.prompt, d.response) for d in shown]).logprob.mean()
    facts = train_sft(
        start.load_copy(),
        shown,
        SFT(learning_rate=5e-3, epochs=4, batch_size=4, lora=LORA),
        folder=tmp_path,
        seed=0,
    )
    trained = Checkpoint(start.source, (tmp_path,), "float32", template).load_copy()
    after = trained.likelihood([(d.prompt, d.response) for d in shown]).logprob.mean()
    assert after > before + 1
    assert facts["rows"] == len(PAIRS)


def test_a_training_of_one_step_moves_the_weights(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    start = Checkpoint(tiny_checkpoint.source, (), "float32", "plain")
    dpo(start, PAIRS[:3], DPO(lora=LORA), tmp_path)
    texts = [(p.prompt, p.chosen) for p in PAIRS]
    before, after = (
        Checkpoint(start.source, adapters, "float32", "plain").load_copy().likelihood(texts).logprob
        for adapters in ((), (tmp_path,))
    )
    assert (before != after).any(), "three pairs are one step, and warming up must not take it all"


def test_a_training_tells_its_steps_and_loss_and_prints_neither(
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    shown = [Demonstration(p.prompt, p.chosen) for p in PAIRS]
    with caplog.at_level("INFO", logger="models.core.progress"):
        train_sft(tiny_checkpoint.load_copy(), shown, SFT(epochs=2, batch_size=4, lora=LORA), folder=tmp_path, seed=0)
    assert [line for line in caplog.messages if re.match(r"training 6/6 steps, loss \d+\.\d{3}", line)]
    out, err = capsys.readouterr()
    assert out == ""
    assert "loss" not in err
    assert "/6" not in err


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_dpo_prefers_the_chosen_more_than_its_reference_does(
    tiny_checkpoint: Checkpoint, tmp_path: Path, template: Any
) -> None:
    start = Checkpoint(tiny_checkpoint.source, (), "float32", template)
    recipe = DPO(learning_rate=5e-3, epochs=3, batch_size=4, lora=LORA)
    facts = dpo(start, PAIRS, recipe, tmp_path)

    def margin(checkpoint: Checkpoint) -> float:
        model = checkpoint.load_copy()
        chosen = model.likelihood([(p.prompt, p.chosen) for p in PAIRS]).logprob
        rejected = model.likelihood([(p.prompt, p.rejected) for p in PAIRS]).logprob
        return float((chosen - rejected).mean())

    after = Checkpoint(start.source, (tmp_path,), "float32", template)
    assert margin(after) > margin(start) + 0.5
    assert facts["rewards_margins"] > 0


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_the_reference_is_what_trl_takes_for_it(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: Any
) -> None:
    """Held fast before the training, the same numbers as with the adapter switched off in every step."""
    import torch

    from models.training import dpo as training

    seen: list[Any] = []
    monkeypatch.setattr(training, "train_with_progress", lambda trainer, *_: seen.append(trainer))
    long = Pair("p", "the film is", " ".join(["film"] * 120), "bad", 1.0, 0.0, "proxy")  # left out, its reference too
    recipe = DPO(batch_size=8, max_length=90, lora=LORA)
    dpo(Checkpoint(tiny_checkpoint.source, (), "float32", template), [long, *PAIRS], recipe, tmp_path)
    batch = next(iter(seen[0].get_train_dataloader()))
    chosen, rejected = seen[0].compute_ref_log_probs(seen[0].model, batch)
    torch.testing.assert_close(batch["ref_chosen_logps"], chosen, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch["ref_rejected_logps"], rejected, rtol=1e-4, atol=1e-4)
    assert len(seen[0].train_dataset) == len(PAIRS)


VARIANTS = {"kto": train_kto, "orpo": train_orpo}


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("algorithm", ["kto", "orpo"])
def test_the_variants_prefer_the_chosen_too_and_the_same_seed_gives_the_same_bytes(
    tiny_checkpoint: Checkpoint, tmp_path: Path, algorithm: Any, template: Any
) -> None:
    start = Checkpoint(tiny_checkpoint.source, (), "float32", template)
    recipe = DPO(algorithm=algorithm, learning_rate=5e-3, epochs=4, batch_size=4, lora=LORA)
    for name in ("one", "other"):
        facts = VARIANTS[algorithm](start.load_copy(), PAIRS, recipe, folder=tmp_path / name, seed=3)
    assert facts["pairs"] == len(PAIRS)
    assert digest(tmp_path / "one") == digest(tmp_path / "other")

    def lead(policy: Checkpoint) -> float:
        sides = (
            policy.load_copy().likelihood([(p.prompt, getattr(p, s)) for p in PAIRS]) for s in ("chosen", "rejected")
        )
        chosen, rejected = (side.logprob.mean() for side in sides)
        return float(chosen - rejected)

    assert lead(Checkpoint(start.source, (tmp_path / "one",), "float32", template)) > lead(start) + 0.5


def test_kto_takes_no_neighbour_of_the_same_pair_and_needs_two_rows(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.training import dpo as training

    seen: list[Any] = []
    monkeypatch.setattr(training, "train_with_progress", lambda trainer, *_: seen.append(trainer.train_dataset))
    pairs = [Pair(str(n), f"the film {n} is", f"good {n}", f"bad {n}", 1.0, 0.0, "proxy") for n in range(9)]
    train_kto(tiny_checkpoint.load_copy(), pairs, DPO(algorithm="kto", lora=LORA), folder=tmp_path, seed=0)
    rows = [(row["prompt_ids"], row["label"]) for row in seen[0]]
    assert len(rows) == 18
    assert [label for _, label in rows] == [True, False] * 9
    assert all(one[0] != other[0] for one, other in zip(rows, [*rows[1:], rows[0]], strict=True))
    with pytest.raises(ValueError, match="set dpo.batch_size to 2 or more"):
        DPO(algorithm="kto", batch_size=1)


def test_orpo_sees_what_the_policy_sees(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from models.training import dpo as training

    seen: list[Any] = []
    monkeypatch.setattr(training, "train_with_progress", lambda trainer, *_: seen.append(trainer.train_dataset))
    model = tiny_checkpoint.load_copy()
    model.tokenizer.bos_token = "<unk>"
    train_orpo(replace(model), PAIRS[:2], DPO(algorithm="orpo", lora=LORA), folder=tmp_path, seed=0)
    ours = model.renderer.encode(PAIRS[0].prompt, PAIRS[0].chosen)
    assert model.tokenizer.bos_token == "<unk>", "the policy's own tokenizer stays as it is"
    assert seen[0][0]["chosen_input_ids"] == ours.ids


def test_adapters_on_the_way_lie_between_the_ends_and_change_nothing(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    start = Checkpoint(tiny_checkpoint.source, (), "float32", "plain")
    recipe = DPO(learning_rate=5e-3, epochs=3, batch_size=4, lora=LORA)
    reference = reference_logprob(start.load_cached(), PAIRS)
    along = [tmp_path / "third", tmp_path / "two thirds"]
    train_dpo(start.load_copy(), PAIRS, reference, recipe, folder=tmp_path / "kept", seed=0, along=along)
    train_dpo(start.load_copy(), PAIRS, reference, recipe, folder=tmp_path / "plain", seed=0)
    assert digest(tmp_path / "kept") == digest(tmp_path / "plain")
    assert len({digest(folder) for folder in (*along, tmp_path / "kept")}) == 3
    texts = [(p.prompt, p.rejected) for p in PAIRS]
    falls = [
        Checkpoint(start.source, adapters, "float32", "plain").load_copy().likelihood(texts).logprob.mean()
        for adapters in ((), *((folder,) for folder in (*along, tmp_path / "kept")))
    ]
    assert falls == sorted(falls, reverse=True)
    train_dpo(
        start.load_copy(),
        PAIRS[:2],
        reference[:2],
        recipe,
        folder=tmp_path / "short",
        seed=0,
        along=[tmp_path / str(n) for n in range(6)],
    )
    assert all((tmp_path / str(n) / "adapter_model.safetensors").exists() for n in range(6)), "also in a short training"


def test_adapters_stack_in_order(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = SFT(learning_rate=5e-3, epochs=2, batch_size=4, lora=LORA)
    first, second = tmp_path / "1", tmp_path / "2"
    train_sft(tiny_checkpoint.load_copy(), [Demonstration("good", GOOD)] * 8, recipe, folder=first, seed=0)
    once = Checkpoint(tiny_checkpoint.source, (first,), "float32", "plain")
    train_sft(once.load_copy(), [Demonstration("bad", BAD)] * 8, recipe, folder=second, seed=0)
    twice = Checkpoint(tiny_checkpoint.source, (first, second), "float32", "plain").load_copy()
    assert twice.likelihood([("bad", BAD)]).logprob[0] > once.load_copy().likelihood([("bad", BAD)]).logprob[0] + 1


def test_the_same_seed_gives_byte_identical_adapters(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    recipe = DPO(learning_rate=1e-3, batch_size=4, lora=LORA)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        dpo(tiny_checkpoint, PAIRS, recipe, tmp_path / name, seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_training_and_scoring_see_the_same_ids(tiny_checkpoint: Checkpoint, template: Any) -> None:
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    model = Checkpoint(tiny_checkpoint.source, (), "float32", template).load_copy()
    ours = model.renderer.encode(PAIRS[0].prompt, PAIRS[0].chosen)
    row = model.renderer.row(PAIRS[0].prompt, chosen=PAIRS[0].chosen, rejected=PAIRS[0].rejected)
    preferring = DPOTrainer(
        model=model.model,
        args=DPOConfig(**trainer_kwargs(DPO(), 0, 12)),
        train_dataset=Dataset.from_list([row]),
        processing_class=model.tokenizer,
        peft_config=LORA.config("CAUSAL_LM"),
    ).train_dataset[0]
    ends = [1] if template == "plain" else []  # plain rows end with the end token; chat rows as the template says
    assert preferring["prompt_ids"] == ours.ids[: ours.start]
    assert preferring["chosen_ids"] == ours.ids[ours.start :]
    assert ours.ids[-1:] == ends or template == "chat"
    again = Checkpoint(tiny_checkpoint.source, (), "float32", template).load_copy()
    sft = SFTTrainer(
        model=again.model,
        args=SFTConfig(**trainer_kwargs(SFT(), 0, 12)),
        train_dataset=Dataset.from_list([model.renderer.row(PAIRS[0].prompt, completion=PAIRS[0].chosen)]),
        processing_class=again.tokenizer,
        peft_config=LORA.config("CAUSAL_LM"),
    ).train_dataset[0]
    assert sft["input_ids"] == ours.ids


def test_rows_too_long_to_train_on_are_counted(
    tiny_checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = Demonstration(" ".join(["film"] * 60), "good")
    recipe = SFT(max_length=16, batch_size=4, lora=LORA)
    facts = train_sft(
        tiny_checkpoint.load_copy(), [Demonstration("good", GOOD)] * 8 + [long], recipe, folder=tmp_path, seed=0
    )
    assert facts["rows"] == 8
    assert facts["too_long"] == 1
    assert "1 of 9 rows are longer than max_length=16 tokens and were left out: ['film film film" in caplog.text
    pairs = [*PAIRS, Pair("p", long.prompt, "good", "bad", 1.0, 0.0, "proxy")]
    recipe = DPO(max_length=40, batch_size=4, lora=LORA)
    for number, train in enumerate((train_kto, train_orpo)):
        told = train(tiny_checkpoint.load_copy(), pairs, recipe, folder=tmp_path / str(number), seed=0)
        assert (told["pairs"], told["too_long"]) == (len(PAIRS), 1)
    told = dpo(tiny_checkpoint, pairs, recipe, tmp_path / "dpo")
    assert (told["pairs"], told["too_long"]) == (len(PAIRS), 1)
    assert np.isfinite(facts["train_loss"])


def _gradients(trainer: Any) -> tuple[float, dict[str, Any]]:
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return float(loss), found


def _trainer(kind: str, start: Checkpoint) -> Any:
    """Return TRL's trainer of a kind on PAIRS, with an adapter that has learned something: a new one's B is zero."""
    import torch
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    from models.evaluators.reward_head import _with_head

    model = start.load_copy()
    whole, task, network = model.renderer.row, "CAUSAL_LM", model.model
    if kind == "sft":
        trainer, config, recipe = SFTTrainer, SFTConfig, SFT(batch_size=8)
        rows = [whole(p.prompt, completion=p.chosen) for p in PAIRS]
    elif kind == "dpo":
        trainer, config, recipe = DPOTrainer, DPOConfig, DPO(batch_size=8)
        rows = [whole(p.prompt, chosen=p.chosen, rejected=p.rejected) for p in PAIRS]
    else:
        trainer, config, recipe, task = RewardTrainer, RewardConfig, SFT(batch_size=8), "SEQ_CLS"
        rows, network = (
            [{"chosen": f"{p.prompt} {p.chosen}", "rejected": p.rejected} for p in PAIRS],
            _with_head(model, 0),
        )
    made = trainer(
        model=network,
        args=config(**trainer_kwargs(recipe, 3, 12)),
        train_dataset=Dataset.from_list(rows),
        processing_class=model.tokenizer,
        peft_config=LORA.config(task),
    )
    torch.manual_seed(1)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return made


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_the_cpu_kernels_give_trls_own_loss_metrics_and_gradients(
    tiny_checkpoint: Checkpoint, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from torch.nn import attention

    from models.policies import lm_head as head
    from models.training.cpu_kernels import use_cpu_kernels

    plain, original = [], attention.sdpa_kernel
    monkeypatch.setattr(attention, "sdpa_kernel", lambda backend: plain.append(backend) or original(backend))
    monkeypatch.setattr(head, "PIECE", 5)
    found = []
    for ours in (False, True):
        trainer = _trainer(kind, tiny_checkpoint)
        if ours:
            use_cpu_kernels(trainer)
        loss, gradients = _gradients(trainer)
        metrics = {name: float(np.mean(values)) for name, values in trainer._metrics["train"].items()}
        found.append((loss, metrics, gradients))
    (loss, metrics, gradients), (our_loss, our_metrics, our_gradients) = found
    patched = {type(module).__name__ for module in trainer.model.modules() if "forward" in vars(module)}
    assert {"Linear", "LlamaModel"} <= patched, "adapters and attention are ours"
    assert plain, "and the attention was plain"
    assert our_loss == pytest.approx(loss, rel=1e-5)
    assert our_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
    assert gradients.keys() == our_gradients.keys()
    for name, value in gradients.items():
        assert float(value.abs().max()) > 0, name
        torch.testing.assert_close(our_gradients[name], value, rtol=1e-3, atol=1e-6)


def test_every_weight_is_trained_where_there_are_no_adapters_and_an_adapter_goes_on_top(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    start = Checkpoint(tiny_checkpoint.source, (), "float32", "plain")
    shown = [Demonstration(p.prompt, p.chosen) for p in PAIRS]
    recipe = SFT(learning_rate=5e-3, epochs=2, batch_size=4, lora=None)
    for folder in ("one", "again"):
        train_sft(start.load_copy(), shown, recipe, folder=tmp_path / folder, seed=0)
    assert digest(tmp_path / "one") == digest(tmp_path / "again")
    tuned = Checkpoint(start.source, (tmp_path / "one",), "float32", "plain")
    moved = dict(tuned.load_copy().model.named_parameters())
    assert all((moved[name] != weight).any() for name, weight in start.load_copy().model.named_parameters())
    whole = DPO(learning_rate=2e-3, epochs=3, batch_size=4, lora=None)
    facts = dpo(tuned, PAIRS, whole, tmp_path / "aligned")
    assert facts["rewards_margins"] > 0.1
    aligned = Checkpoint(start.source, (tmp_path / "one", tmp_path / "aligned"), "float32", "plain")
    facts = dpo(aligned, PAIRS, DPO(learning_rate=5e-3, epochs=1, batch_size=4, lora=LORA), tmp_path / "adapted")
    texts = [(p.prompt, p.chosen) for p in PAIRS]
    on_top = Checkpoint(start.source, (*aligned.adapters, tmp_path / "adapted"), "float32", "plain")
    assert (on_top.load_copy().likelihood(texts).logprob != aligned.load_copy().likelihood(texts).logprob).any()
    merged = on_top.write_merged(tmp_path / "merged")
    alone = Checkpoint(str(merged), (), "float32", "plain").load_copy().likelihood(texts).logprob
    np.testing.assert_allclose(alone, on_top.load_copy().likelihood(texts).logprob, atol=1e-4)


def test_what_needs_adapters_says_so() -> None:
    with pytest.raises(ValueError, match="dpo.lora=null trains every weight, and KTO's reference"):
        DPO(algorithm="kto", lora=None)
    with pytest.raises(ValueError, match="evaluator.training.lora=null trains every weight, and a reward head"):
        RewardHead(training=SFT(lora=None))

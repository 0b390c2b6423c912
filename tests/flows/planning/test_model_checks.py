"""What a model's files tell of it is checked in the plan: architecture, context, template."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from flows.config.experiment import Experiment
from flows.planning.run import Plan, plan
from models.policies.model_files import ModelFiles, files_at_hand
from tests.support.architectures import write_model

Planned = Callable[..., Plan]


@pytest.fixture
def model(tiny_model_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_path, tmp_path / "model"))


@pytest.fixture
def planned(tiny_settings: dict[str, Any], model: Path) -> Planned:
    def run(folder: Path = model, **changes: Any) -> Plan:
        told: dict[str, Any] = json.loads(json.dumps(tiny_settings))
        told["policy"]["model"] = str(folder)
        for place, value in changes.items():
            *parents, last = place.split("__")
            inner = told
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
        return plan(Experiment.model_validate(told))

    return run


def edit(folder: Path, **fields: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def template(folder: Path, source: str) -> Path:
    (folder / "chat_template.jinja").write_text(source)
    return folder


def test_a_model_that_can_do_its_part_is_planned_without_a_word(planned: Planned) -> None:
    assert planned().notes == ()
    assert planned(policy__template="chat").notes == ()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, r"is an encoder-decoder \(t5\)"),
        ({"model_type": "of_its_own"}, "model_type 'of_its_own', which has no causal language-model head"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "saved as LlamaForSequenceClassification"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "saved as BertForMaskedLM"),
        ({"architectures": ["LlamaModel"], "tie_word_embeddings": False}, "saved as LlamaModel"),
    ],
)
def test_what_writes_no_text_is_refused(planned: Planned, model: Path, told: dict[str, Any], said: str) -> None:
    edit(model, **told)
    with pytest.raises(ValueError, match=f"policy.model=.* {said}.*set policy.model to a causal language model"):
        planned()


def test_a_family_is_refused_only_what_it_lacks(planned: Planned, model: Path) -> None:
    edit(model, model_type="mamba", architectures=["MambaForCausalLM"])
    with pytest.raises(ValueError, match=r"policy\.sft\.lora .* takes none: set policy\.sft\.lora to null"):
        planned()
    with pytest.raises(ValueError, match=r"dpo\.lora .* set dpo\.lora to null"):
        planned(policy__sft__lora=None)
    planned(policy__sft__lora=None, dpo__lora=None)
    edit(model, model_type="granite", architectures=["GraniteForCausalLM"])
    planned()
    with pytest.raises(ValueError, match="none of model_type 'granite'.*set evaluator.kind to generative or linear"):
        planned(evaluator={"kind": "reward_head"})


def test_an_early_layer_that_is_not_there_is_refused(planned: Planned) -> None:
    planned(embedding__layers=2)
    with pytest.raises(ValueError, match=r"embedding\.layers must be at most the model's 2, got 3"):
        planned(embedding__layers=3)


def test_prompt_and_response_fit_into_the_context(planned: Planned) -> None:
    planned(policy__max_prompt_tokens=1011, generation__max_new_tokens=12, embedding__max_tokens=1024)
    said = r"max_prompt_tokens=1012, generation\.max_new_tokens=12 and 1 of the template make 1025, and pass the 1024"
    with pytest.raises(ValueError, match=said):
        planned(policy__max_prompt_tokens=1012, generation__max_new_tokens=12, embedding__max_tokens=1024)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt", "gemma3"])
def test_the_context_is_found_under_every_name(planned: Planned, architecture: str, tmp_path: Path) -> None:
    lengths = {"gpt2": "n_positions"}
    folder = write_model(tmp_path / "other", architecture, **{lengths.get(architecture, "max_position_embeddings"): 40})
    with pytest.raises(ValueError, match=f"pass the 40 tokens that {folder} reads"):
        planned(folder, policy__max_prompt_tokens=32, generation__max_new_tokens=8)


@pytest.mark.parametrize(
    ("told", "context"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}, 400),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 400}}, 1600),
        ({"max_position_embeddings": 800, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 800),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "bloom", "max_position_embeddings": None}, None),
    ],
)
def test_the_context_is_what_the_configuration_says(model: Path, told: dict[str, Any], context: int | None) -> None:
    assert ModelFiles("it", edit(model, **told)).context == context


def test_a_judging_question_fits_into_the_context(planned: Planned, model: Path) -> None:
    judge = {"evaluator": {"kind": "generative"}}
    planned(**judge)
    edit(model, max_position_embeddings=100)
    with pytest.raises(ValueError, match="evaluator.kind=generative asks about rubric, prompt and response in up to"):
        planned(**judge, embedding__max_tokens=64)


def test_a_text_that_is_embedded_fits_into_the_context(planned: Planned, model: Path) -> None:
    edit(model, max_position_embeddings=100)
    with pytest.raises(ValueError, match=r"embedding\.max_tokens=None .* set it to 100"):
        planned()
    planned(embedding__max_tokens=100)


def test_a_demonstration_fits_into_the_context(planned: Planned, model: Path, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "the film is", "response": "~" * 1200}) + "\n")
    long = {"prompts__demonstrations": str(tmp_path / "long.jsonl")}
    planned(**long)  # it is longer than policy.sft.max_length, and left out
    with pytest.raises(
        ValueError, match=r"policy\.sft\.max_length=2048 lets in a demonstration of about 12\d\d tokens"
    ):
        planned(**long, policy__sft__max_length=2048)


def test_the_reward_model_s_context_is_checked(planned: Planned, tiny_model_path: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(tiny_model_path, num_labels=1).save_pretrained(
        tmp_path / "reward"
    )
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(tmp_path / "reward")
    edit(tmp_path / "reward", max_position_embeddings=30)
    oracle = {"kind": "reward_model", "model": str(tmp_path / "reward"), "template": "plain"}
    with pytest.raises(ValueError, match=r"labelling\.oracle\.model=.* reads 30 tokens.*max_tokens to 30"):
        planned(labelling__oracle=oracle)
    (note,) = planned(labelling__oracle=oracle | {"max_tokens": 30}, evaluation__oracle={"kind": "gold"}).notes
    assert (
        note == "oracle     labelling.oracle reads 30 tokens, and a text may have about 41: longer ones are quarantined"
    )


def test_a_sentence_encoder_s_cut_is_said(planned: Planned) -> None:
    (note,) = planned(embedding={"kind": "sentence"}, policy__max_prompt_tokens=200).notes
    assert note.startswith("embedding  reads the first 256 tokens of a text, which may have up to ")


def test_a_model_that_is_not_here_is_said_not_to_be_checked(planned: Planned) -> None:
    (note,) = planned(Path("nobody/nothing")).notes
    assert note == "model      nobody/nothing is not here yet: its context and template were not checked"


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{%- for m in messages -%}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}"
    "{% else %}{{ bos_token }}{{ m.content | tojson }}{% continue %}{% endif %}{%- endfor -%}{{ strftime_now('%Y') }}"
)


@pytest.mark.parametrize("source", [CHATML, MARKED])
def test_a_template_is_rendered_as_the_library_renders_it(planned: Planned, model: Path, source: str) -> None:
    template(model, source)
    planned(policy__template="chat")
    probe, tokenizer = ModelFiles("it", model).probe(), AutoTokenizer.from_pretrained(model)
    asked = [{"role": "user", "content": "Which word names the probe?"}]
    whole = [*asked, {"role": "assistant", "content": "Zebrafish is the word."}]
    assert probe.asked == tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert probe.whole == tokenizer.apply_chat_template(whole, tokenize=False)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{{ raise_exception('roles must be odd') }}", "it fails on a prompt and its response .*roles must be odd"),
        ("{{ nothing.there.at.all }}", "it fails on a prompt and its response"),
        ("{% for m in messages %", "it fails on a prompt and its response"),
        ("{{ messages[0].content }}", "it leaves the response out"),
        ("{{ messages[-1].role }}: {{ messages[-1].content }}", "it leaves the prompt out"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "puts it before the prompt"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "it writes the prompt in another way once a response follows",
        ),
    ],
)
def test_a_template_that_refuses_or_drops_a_text_is_refused(
    planned: Planned, model: Path, source: str, fault: str
) -> None:
    template(model, source)
    with pytest.raises(ValueError, match=rf"policy\.template=chat.*{fault}.*Set policy\.template to plain"):
        planned(policy__template="chat")
    planned(policy__template="plain")


def test_a_base_model_has_no_chat_template(planned: Planned, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template: set policy.template to plain"):
        planned(policy__template="chat")
    planned(policy__template="plain")


def test_a_template_among_the_tokenizer_s_settings_is_found(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    file = model / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    for told in (CHATML, named):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": told}))
        found = files_at_hand(str(model))
        assert found is not None
        assert found.chat_template == CHATML

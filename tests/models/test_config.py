"""config.json and index.json with what cannot be: one line, before anything is made of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import star_tl as star
from star_tl.errors import StarError
from star_tl.models.config import read_config

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NUMBERS = (*SIZES, "num_key_value_heads", "max_position_embeddings")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def refused(folder: Path) -> str:
    with pytest.raises(StarError) as failure:
        star.load_model(folder, device="cpu")
    message = str(failure.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    return message


@pytest.mark.parametrize("value", [0, -1, 10**30, 2.5, "12", True, [3], {}], ids=repr)
@pytest.mark.parametrize("key", NUMBERS)
def test_a_size_that_cannot_be_is_refused(folder: Path, key: str, value: Any) -> None:
    edit(folder, **{key: value})
    assert f"{key} is {value!r}" in refused(folder)


@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_is_not_given_is_asked_for(folder: Path, key: str) -> None:
    edit(folder, **{key: None})
    assert f"lacks {key}" in refused(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rms_norm_eps", -1),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", "small"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0}),
        ("rope_parameters", 5),
        ("tie_word_embeddings", "yes"),
        ("attention_bias", 1),
        ("hidden_act", 7),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [None]),
        ("num_key_value_heads", 3),
        ("head_dim", 7),
    ],
)
def test_what_is_no_number_switch_or_name_is_refused(folder: Path, key: str, value: Any) -> None:
    edit(folder, **{key: value})
    assert "should be" in refused(folder)


def test_a_rope_without_its_numbers_is_refused(folder: Path) -> None:
    edit(folder, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0})
    assert "low_freq_factor is None and should be a number above 0" in refused(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "\\ud83d", "null"])
def test_json_that_cannot_be_read_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder)


def test_a_config_that_is_no_regular_file_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "a pipe or a device" in refused(folder)


@pytest.mark.parametrize("places", [None, [], "model.safetensors", {"a": 1}, {"a": ["b"]}, {"a": "../b.safetensors"}])
def test_an_index_that_names_no_files_is_refused(folder: Path, places: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert "index.json" in refused(folder)


@pytest.mark.parametrize("eos", ["2", [None], 1.5, {}, -3])
def test_end_tokens_that_are_none_are_refused(folder: Path, eos: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert "generation_config.json" in refused(folder) or "end-of-turn" in refused(folder)


def test_the_generation_configs_end_tokens_and_template_arguments_reach_the_tokenizer(folder: Path) -> None:
    from star_tl.data.chat import render, stop_ids

    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 17]}))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if loud %}!{% endif %}")
    plain = star.load_model(folder, device="cpu")
    loud = star.load_model(folder, device="cpu", template_args={"loud": True})
    assert set(stop_ids(plain.tokenizer)) >= {3, 17}
    ids = render(loud.tokenizer, "hi").ids
    assert ids[:-1] == render(plain.tokenizer, "hi").ids
    assert loud.tokenizer.decode(ids[-1:]) == "!"


@pytest.mark.parametrize("name", ["n" * 5000, "null\0byte", "half\ud83d", "\n", "owner/" + "n" * 5000])
def test_a_name_that_no_model_can_have_is_refused(name: str) -> None:
    with pytest.raises(StarError) as failure:
        star.load_model(name)
    assert len(str(failure.value).splitlines()) == 1
    assert len(str(failure.value)) < 600


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in 'a' %}{% endfor %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    ],
    ids=["endless", "gigabytes", "doubling"],
)
def test_a_template_without_end_is_refused(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    assert "chat template does not end" in refused(folder)


def test_a_template_that_is_broken_is_not_blamed_on_the_turns(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    with pytest.raises(StarError, match=r"template is broken .* correct chat_template") as failure:
        star.sample(star.load_model(folder, device="cpu"), ["hi"], max_new_tokens=1)
    assert "turns" not in str(failure.value)


def test_the_demo_config_passes() -> None:
    assert read_config(Path(star.__file__).parent / "models" / "demo")["hidden_size"] > 0


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

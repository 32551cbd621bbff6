"""The model that ships with the package: its files, its text, and the script that made it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertoken.demo import train
from pertoken.demo.bytes_tokenizer import PADDING_ID, VOCABULARY_SIZE, decode, encode
from pertoken.demo.model import CONTEXT_LENGTH, MODEL_FOLDER, load_model
from pertoken.demo.stored_weights import (
    LARGEST_NUMBER,
    SCALE_SUFFIX,
    WEIGHTS_NAME,
    read_weights,
    save_weights,
)
from pertoken.errors import MissingDependencyError, PertokenError

MOST_WEIGHT_BYTES = 250_000
MOST_DEFLATED_BYTES = 130_000
GREEDY_PROMPT = "This function is "
GREEDY_TEXT = "This function is the string in the string is not the string in the st"

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture
def torch_settings():
    """What the training script changes in torch, put back afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@given(st.text(st.characters(min_codepoint=1, max_codepoint=127)))
def test_ascii_survives_encoding_and_decoding(text):
    ids = encode(text)
    assert len(ids) == len(text)
    assert decode([PADDING_ID, *ids, PADDING_ID]) == text


@given(st.text())
def test_any_text_encodes_to_ids_of_the_vocabulary_without_padding(text):
    ids = encode(text)
    assert len(ids) == len(text)
    assert all(0 < token_id < VOCABULARY_SIZE for token_id in ids)


@pytest.mark.parametrize("token_id", [-1, VOCABULARY_SIZE, 256])
def test_an_id_outside_the_vocabulary_is_refused(token_id):
    with pytest.raises(ValueError, match=r"0\.\.127"):
        decode([65, token_id])


def test_the_weights_are_small_enough_for_the_wheel():
    weights = (MODEL_FOLDER / WEIGHTS_NAME).read_bytes()
    assert len(weights) <= MOST_WEIGHT_BYTES
    assert len(zlib.compress(weights)) <= MOST_DEFLATED_BYTES
    assert {path.name for path in MODEL_FOLDER.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }


def test_matrices_are_stored_as_whole_numbers_with_scales_and_load_as_their_products(model):
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy")
    stored = safetensors.load_file(MODEL_FOLDER / WEIGHTS_NAME)
    loaded = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    assert set(loaded) == {name for name in stored if not name.endswith(SCALE_SUFFIX)}
    for name, weight in loaded.items():
        numbers = stored[name]
        assert weight.dtype == numpy.float32
        if weight.ndim == 2:
            assert numbers.dtype == numpy.int8
            assert (numpy.abs(numbers).max(axis=1) == LARGEST_NUMBER).all()
            scales = stored[name + SCALE_SUFFIX]
            assert (scales.dtype, scales.shape) == (numpy.float16, (len(numbers), 1))
            expected = numbers.astype(numpy.float32) * scales.astype(numpy.float32)
        else:
            assert numbers.dtype == numpy.float16
            expected = numbers.astype(numpy.float32)
        assert (weight == expected).all()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-60000, 60000, width=32), min_size=3, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_a_stored_weight_is_off_by_half_a_scale_of_its_row_at_most(rows):
    weight = torch.tensor(rows, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        save_weights(Path(folder), {"matrix": weight, "vector": weight[0]})
        read = read_weights(Path(folder))
    # A float16 rounds by 2^-11 of itself, and of the smallest ones by 2^-25.
    scale = weight.abs().amax(dim=1, keepdim=True) / LARGEST_NUMBER
    half = scale / 2 + LARGEST_NUMBER * (scale * 2**-11 + 2**-14)
    assert ((read["matrix"] - weight).abs() <= half).all()
    assert torch.equal(read["vector"], weight[0].half().float())
    assert set(read) == {"matrix", "vector"}


def test_the_model_is_a_llama_as_its_readme_says(model):
    readme = (MODEL_FOLDER / "README.md").read_text(encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert type(model).__name__ == "LlamaForCausalLM"
    assert f"| parameters | {parameters:,} |" in readme
    assert model.config.vocab_size == VOCABULARY_SIZE
    assert model.config.max_position_embeddings == CONTEXT_LENGTH
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training


def test_the_readme_records_the_flags_that_the_script_has_by_default():
    readme = (MODEL_FOLDER / "README.md").read_text(encoding="utf-8")
    command = readme.split("```sh\n")[1].split("```")[0].replace("\\\n", " ").split()
    assert command[:3] == ["python", "-m", "pertoken.demo.train"]
    assert train._parse(command[3:]) == train._parse(["--output", "DIR"])


def test_greedy_text_is_the_recorded_one(model):
    ids = torch.tensor([encode(GREEDY_PROMPT)])
    new_tokens = len(GREEDY_TEXT) - len(GREEDY_PROMPT)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
    )
    assert decode(output[0].tolist()) == GREEDY_TEXT


def test_english_is_far_likelier_than_the_same_letters_shuffled(model):
    def loss(text: str) -> float:
        ids = torch.tensor([encode(text)])
        with torch.inference_mode():
            logits = model(input_ids=ids[:, :-1]).logits
        return float(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]))

    english = "The value of the argument must be an integer, otherwise an error is raised."
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(english), generator=generator).tolist()
    assert loss(english) < 1.6
    assert loss("".join(english[i] for i in order)) > 3.5


def test_loading_opens_no_connection_and_prints_nothing(tmp_path):
    program = """
import socket
def refuse(*arguments, **options):
    raise AssertionError("a connection was opened")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from pertoken.demo.model import load_model
load_model()
"""
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment["HF_HOME"] = str(tmp_path / "empty")
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_loading_leaves_the_progress_bars_of_transformers_as_they_were():
    from transformers.utils import logging

    logging.enable_progress_bar()
    load_model()
    assert logging.is_progress_bar_enabled()


def test_a_folder_without_a_model_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        load_model(tmp_path)


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_a_missing_library_is_an_error_that_names_the_extra(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=re.escape("pip install 'pertoken[demo]'")):
        load_model()
    assert issubclass(MissingDependencyError, PertokenError)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9 or newer")
def test_the_training_script_learns_and_gives_the_same_weights_twice(
    tmp_path, monkeypatch, capsys, torch_settings
):
    sentence = "the quick brown fox jumps over the lazy dog and looks at line {}"
    monkeypatch.setattr(train, "paragraphs", lambda: [sentence.format(i) for i in range(100)])
    monkeypatch.setattr(train, "SAMPLE_TOKENS", 4)
    flags = "--hidden 16 --layers 1 --intermediate 16 --steps 30 --batch 4 --length 32 --threads 1"
    for name in ("first", "second"):
        assert train.main(["--output", str(tmp_path / name), *flags.split()]) == 0
    assert "loss" in capsys.readouterr().out
    weights = [(tmp_path / name / WEIGHTS_NAME).read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
    assert json.loads((tmp_path / "first" / "config.json").read_text())["hidden_size"] == 16
    readme = (tmp_path / "first" / "README.md").read_text(encoding="utf-8")
    losses = dict(re.findall(r"\| loss (.+?) \| ([\d.]+) nats", readme))
    assert float(losses["at the end, training text"]) < 0.9 * float(losses["at the first step"])
    assert load_model(tmp_path / "first").config.num_hidden_layers == 1


def test_the_corpus_keeps_whole_paragraphs_of_prose_and_drops_code_and_scraps():
    from pertoken.demo import corpus

    prose = "A paragraph of prose that is long enough to be kept, folded over two lines."
    code = ">>> x = {'a': 1}; y = [i ** 2 for i in range(10)]; print(x[y[0]], x.get('b', '---'))"
    text = "\n\n".join([prose.replace(" to ", "\nto "), code, "Too short."])
    assert list(corpus._prose_paragraphs(text)) == [prose]

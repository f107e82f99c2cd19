"""Faults planted in what a real llama.cpp serves: each is named by the gate that is for it."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_patches import Layout, Patch, layout_of
from luthier.cli import call
from luthier.serving.llama_server import LlamaServer
from serving_cases import convert_folder, edit_json

pytest_plugins = "serving_fixtures"

CONTEXT_TOKENS = 512


@dataclass(frozen=True)
class Files:
    """The tuned model's GGUF in f16 and the base's, laid out alike."""

    tuned: Path
    base: Path
    layout: Layout
    template: str

    def patched(self) -> Patch:
        return Patch(self.tuned, self.layout)

    def scaled(self, factor: float, part: str = "") -> Patch:
        """The base and `factor` times what training changed."""
        base = Patch(self.base, self.layout)

        def mix(name: str, tuned: Any) -> Any:
            untuned = base.tensor(name).astype(np.float32)
            return untuned + factor * (tuned - untuned)

        return self.patched().each(mix, part)

    def with_template(self, old: str, new: str) -> Patch:
        assert old in self.template
        # What stands in for a missing system prompt leaves room for changes.
        shorter = self.template.replace(", trained by Hugging Face", "").replace(old, new)
        return self.patched().template(self.template, shorter)


@pytest.fixture(scope="module")
def files(tuned_dir: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("planted")
    tuned = convert_folder(tuned_dir, folder / "tuned.gguf", "f16")
    base = convert_folder(tiny_base, folder / "base.gguf", "f16")
    assert tuned.stat().st_size == base.stat().st_size
    template = (tiny_base / "chat_template.jinja").read_text("utf-8")
    return Files(tuned, base, layout_of(tuned), template)


@pytest.fixture
def statuses(
    probes_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, str], Mapping[str, Any]]]:
    """Serve a GGUF and check it: the exit code, the status of each gate, and its detail."""

    def serve(path: Path, context_tokens: int = CONTEXT_TOKENS) -> Any:
        with LlamaServer(path, context_tokens=context_tokens, model_name="planted") as server:
            code = call(["serve-check", str(probes_bundle), "--endpoint", server.url, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert found["not_checked"] == []
        gates = found["gates"]
        return (
            code,
            {gate["id"]: gate["status"] for gate in gates},
            {gate["id"]: gate["detail"] for gate in gates},
        )

    return serve


def failing(found: Mapping[str, str]) -> set[str]:
    return {gate for gate, status in found.items() if status == "fail"}


def test_the_right_model_passes_in_every_precision(
    files: Files, tuned_gguf: Path, statuses: Callable[..., Any]
) -> None:
    for path in (files.tuned, tuned_gguf):
        code, found, detail = statuses(path)
        assert (code, set(found.values()), len(found)) == (0, {"pass"}, 9), detail


Plant = Callable[[Files], Patch]
WEIGHTS: dict[str, tuple[Plant, set[str]]] = {
    "not applied, the base": (
        lambda files: files.scaled(0.0),
        {"served-is-ours", "served-is-tuned", "served-logprobs", "served-stops"},
    ),
    "applied twice": (lambda files: files.scaled(2.0), {"served-logprobs"}),
    "half of alpha": (lambda files: files.scaled(0.5), {"served-logprobs"}),
    "alpha a fifth too small": (lambda files: files.scaled(0.8), {"served-logprobs"}),
    "one layer missing": (lambda files: files.scaled(0.0, "blk.1."), {"served-logprobs"}),
    "a square matrix transposed": (
        lambda files: files.patched().each(lambda _, matrix: matrix.T, "blk.1.attn_output"),
        {"served-logprobs"},
    ),
    "another transposed": (
        lambda files: files.patched().each(lambda _, matrix: matrix.T, "blk.0.attn_q"),
        {"served-is-ours", "served-logprobs"},
    ),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_wrong_weights(
    fault: str, files: Files, statuses: Callable[..., Any], tmp_path: Path
) -> None:
    plant, gates = WEIGHTS[fault]
    code, found, detail = statuses(plant(files).write(tmp_path / "wrong.gguf"))
    assert code == 3
    assert gates <= failing(found), detail
    assert not failing(found) & {"served-template", "served-tokenizer", "served-context"}
    if fault == "not applied, the base":
        assert "It serves the base model" in detail["served-is-tuned"]


def test_a_tied_head_that_was_not_tuned(
    tuned_dir: Path, tiny_base: Path, statuses: Callable[..., Any], tmp_path: Path
) -> None:
    """The embeddings are tuned, and the head is the base's, as where a merge lost the tie."""
    from luthier.models.loading import load_model

    folder = tmp_path / "untied"
    shutil.copytree(tuned_dir, folder)
    model = load_model(tuned_dir)
    head = load_model(tiny_base).get_output_embeddings().weight.detach().clone()
    weights = {**model.state_dict(), "lm_head.weight": head}
    model.save_pretrained(folder, state_dict=weights)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    code, found, detail = statuses(convert_folder(folder, tmp_path / "wrong.gguf", "f16"))
    assert code == 3
    assert {"served-is-ours", "served-logprobs"} <= failing(found), detail


def test_the_tokenizer_of_another_model(
    files: Files, statuses: Callable[..., Any], tmp_path: Path
) -> None:
    """The same vocabulary, cut into words by another model's rule."""
    wrong = files.patched().text("smollm", "falcon").write(tmp_path / "wrong.gguf")
    code, found, detail = statuses(wrong)
    assert code == 3
    assert "served-tokenizer" in failing(found), detail


def test_one_merge_of_the_tokenizer_lost(
    files: Files, statuses: Callable[..., Any], tmp_path: Path
) -> None:
    wrong = files.patched().text("Ġc hess", "Ġc hesz").write(tmp_path / "wrong.gguf")
    code, found, detail = statuses(wrong)
    assert code == 3
    assert {"served-tokenizer", "served-template"} <= failing(found), detail


def test_another_stop_token(files: Files, statuses: Callable[..., Any], tmp_path: Path) -> None:
    wrong = files.patched().end_token(0).write(tmp_path / "wrong.gguf")
    code, found, detail = statuses(wrong)
    assert code == 3
    assert failing(found) == {"served-stops"}, detail
    assert "'<|endoftext|>', trained was <|im_end|>" in detail["served-stops"]


TEMPLATES = {
    "another role": ("'<|im_start|>assistant\n'", "'<|im_start|>model\n'"),
    "a newline dropped": ("'<|im_end|>' + '\n'", "'<|im_end|>' + ''"),
    "no system prompt": (" in messages %}", " in messages[1:] %}"),
    "a doubled BOS": ("{% for", "{{'<|im_start|>'}}{% for"),
    "another language": ("'<|im_start|>' + message['role'] + '\n'", "message['role'] + ': '"),
}


@pytest.mark.parametrize("fault", TEMPLATES)
def test_another_template(
    fault: str, files: Files, statuses: Callable[..., Any], tmp_path: Path
) -> None:
    wrong = files.with_template(*TEMPLATES[fault]).write(tmp_path / "wrong.gguf")
    code, found, detail = statuses(wrong)
    assert code == 3
    assert "served-template" in failing(found), detail
    assert "from token" in detail["served-template"]
    if fault == "a doubled BOS":
        assert "one more: is a BOS put before" in detail["served-template"]


def test_a_bos_that_the_server_adds_and_not_the_template_is_right(
    files: Files, statuses: Callable[..., Any], tmp_path: Path
) -> None:
    """llama.cpp takes it out of what the template writes, then puts it before the prompt."""
    code, found, detail = statuses(files.patched().adds_bos().write(tmp_path / "right.gguf"))
    assert (code, found["served-template"]) == (0, "pass"), detail


def test_a_shorter_context(files: Files, statuses: Callable[..., Any]) -> None:
    code, found, detail = statuses(files.tuned, context_tokens=256)
    assert code == 3
    assert failing(found) == {"served-context"}, detail

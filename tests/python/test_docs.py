"""The documentation says what is there: columns, links and commands exist, and its snippets run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pertoken import schema
from pertoken.cli import COMMANDS
from readers.perfetto_reader import open_in_perfetto
from synthetic import synthetic_profile

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAKE_TARGET = re.compile(r"`?\bmake ([a-z0-9-]+)")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [code for found, code in FENCED.findall((ROOT / page).read_text()) if found == language]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links to a file or heading that does not exist, or outside the repository."""
    wrong = []
    for link in LINK.findall(FENCED.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        found = target.is_relative_to(ROOT) and target.exists()
        if found and anchor:
            found = anchor in anchors(target.read_text() if path else text)
        if not found:
            wrong.append(link)
    return wrong


def column_rows() -> Iterator[tuple[str, str]]:
    """The line that documents each column, beside the name of its table."""
    for table, columns in schema.TABLES.items():
        for column in columns:
            kind = "text" if column.coded else column.dtype
            yield table, f"| `{column.name}` | {kind} | {column.meaning} |"


def test_concepts_list_every_table_and_column_as_the_schema_does() -> None:
    sections = re.split(r"^### ", (DOCS / "concepts.md").read_text(), flags=re.MULTILINE)
    by_name = {section.split("\n", 1)[0]: section.split("\n## ")[0] for section in sections[1:]}
    assert list(by_name) == list(schema.TABLES)
    documented = [
        (table, line)
        for table, section in by_name.items()
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    assert documented == list(column_rows())


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[a](README.md)", False),
        ("![a](docs/no-such-picture.png)", True),
        ("[a](docs/concepts.md#kinds-of-steps)", False),
        ("[a](docs/concepts.md#no-such-heading)", True),
        ("# Here\n[a](#here)", False),
        ("[a](../elsewhere.md)", True),
        ("[a](https://example.org/x)", False),
        ("```sh\n[a](no-such-file)\n```", False),
    ],
)
def test_the_link_rule_finds_what_is_planted(text: str, broken: bool) -> None:
    assert bool(broken_links(ROOT / "README.md", text)) is broken


@pytest.mark.parametrize("page", NAMES)
def test_python_snippets_compile(page: str) -> None:
    for number, code in enumerate(blocks(page, "python")):
        compile(code, f"{page}, block {number}", "exec")


def test_commands_and_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        text = page.read_text()
        shell = "\n".join(code for language, code in FENCED.findall(text) if language == "sh")
        named = set(re.findall(r"`pertoken ([a-z]+)", text) + re.findall(r"^pertoken (\w+)", shell))
        assert named <= set(COMMANDS), page
        spans = "\n".join(re.findall(r"`[^`\n]+`", text))
        for target in MAKE_TARGET.findall(shell + spans):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: make {target}"


def test_the_snippet_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from models import llama, prompt

    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md", "python")
    # 128 tokens do not fit into the tiny model's context with the prompt.
    code = code.replace("max_new_tokens=128", "max_new_tokens=6")
    exec(code, {"model": llama(), "inputs": {"input_ids": prompt()}})
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM" in printed and "inter-token latency" in printed
    assert (tmp_path / "trace.json").stat().st_size > 0


def test_what_the_readme_shows_of_a_summary_is_what_one_prints() -> None:
    (shown,) = blocks("README.md", "text")
    printed = str(synthetic_profile(requests=3, tokens=5).summary())
    titles = ("Latency", "Slowest tokens (", "Hottest sites (")
    assert [t for t in titles if t in shown] == [t for t in titles if t in printed]
    rows = re.findall(r"^ ((?:time|inter|step)[a-z, -]*[a-z])  ", printed, re.MULTILINE)
    assert rows and set(rows) <= set(
        re.findall(r"^ ((?:time|inter|step)[a-z, -]*[a-z])  ", shown, re.MULTILINE)
    )


@pytest.mark.slow
def test_the_snippets_of_the_quickstart_and_of_the_file_format_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for page in ("docs/quickstart.md", "docs/file-format.md"):
        for number, code in enumerate(blocks(page, "python")):
            exec(compile(code, f"{page}, block {number}", "exec"), names)
            values = ("profile", "again", "requests", "prof")
            assert all(names[name] is not None for name in values if name in names)
    printed = capsys.readouterr().out
    assert "['chat-17'] ['blue']" in printed
    assert "2 requests on 2 tracks" in printed
    assert f"LlamaForCausalLM {names['decode_ns'].sum()}" in printed


def test_the_snippets_of_the_page_of_engines_run(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    from models import llama

    names: dict[str, Any] = {
        "model": llama(),
        "prompts": [[1, 2, 3]],
        "generation_config": GenerationConfig(max_new_tokens=3, eos_token_id=-1),
        "continuous_batching_config": ContinuousBatchingConfig(
            page_size=4, num_blocks=16, max_batch_tokens=16
        ),
    }
    for number, code in enumerate(blocks("docs/engines.md", "python")):
        exec(compile(code, f"docs/engines.md, block {number}", "exec"), names)
        profile = names["prof"].result()
        assert len(profile.tokens) > 0 and profile.losses["faults"] == {}
    assert "['prefill', 'mixed'] [2, 1]" in capsys.readouterr().out


def test_the_snippets_of_the_page_of_experiments_run_in_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names: dict[str, Any] = {}
    for number, code in enumerate(blocks("docs/experiments.md", "python")):
        exec(compile(code, f"docs/experiments.md, block {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "change of new against old" in printed
    assert "20 pairs of 2 + 2 blocks" in printed
    assert "mean of on " in printed


def test_the_queries_of_the_trace_page_run_in_perfetto(tmp_path: Path) -> None:
    profile = synthetic_profile(requests=2, tokens=6, layers=2)
    profile.export_chrome_trace(tmp_path / "trace.json")
    steps, spans = profile.steps, profile.spans
    decode = steps["step"][steps["kind"] == "decode"].tolist()
    calls = {
        (site, step)
        for site, category, step in zip(
            spans["site"].tolist(), spans["category"].tolist(), spans["step"].tolist(), strict=True
        )
        if category == "module" and step in decode
    }
    hottest, slowest = blocks("docs/chrome-trace.md", "sql")
    with open_in_perfetto(tmp_path / "trace.json") as trace:
        rows = trace.rows(hottest)
        slow = trace.rows(slowest)
    assert rows and sum(int(row[1]) for row in rows) == len(calls)
    ranked = sorted(zip(steps["wall_ns"].tolist(), steps["step"].tolist(), strict=True))
    ranked = [(ns, step) for ns, step in ranked if step in decode][::-1]
    assert [int(row[0]) for row in slow] == [step for _, step in ranked[: len(slow)]]

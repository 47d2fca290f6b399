"""What the README says is so."""

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_example_runs_as_it_stands_and_prints_what_is_said(capsys, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    exec(compile(example, "README.md", "exec"), {})
    said = re.search(r"It prints `(.*?)`", README).group(1)
    assert capsys.readouterr().out.strip() == said


def test_every_file_and_command_it_names_is_there():
    for path in set(re.findall(r"(?:configs|scripts|tests|disguide_jax)/[\w/]+\.py", README)):
        if "NAME" not in path:
            assert (ROOT / path).is_file(), path
    for name in re.findall(r"`(\w+\.py)`", README):
        assert list((ROOT / "disguide_jax").rglob(name)), name

"""docs/maintaining-an-index.md can be followed: its commands are run, in an empty home, as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from factories import tiny_llama
from tuf_client import Client

PAGE = Path(__file__).resolve().parents[1] / "docs" / "maintaining-an-index.md"
BLOCK = re.compile(r"^( *)```sh\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def test_the_page_can_be_followed(tmp_path: Path) -> None:
    commands = [textwrap.dedent(match[2]) for match in BLOCK.finditer(PAGE.read_text())]
    assert len(commands) > 10
    desk, home, tools = tmp_path / "desk", tmp_path / "home", tmp_path / "bin"
    for directory in (desk, home, tools):
        directory.mkdir(exist_ok=True)
    tool = tools / "weightpkg"
    # without a terminal, the answers to questions for a passphrase come from stdin
    answers = 'printf "x\\nx\\nx\\n"'
    tool.write_text(f'#!/bin/sh\n{answers} | "{sys.executable}" -m weightpkg "$@"\n')
    tool.chmod(0o755)
    tiny_llama(desk / "support-8b-Q4_K_M.gguf")
    tiny_llama(desk / "support-8b-Q8_0.gguf", seed=1)
    done = subprocess.run(
        ["/bin/bash", "-euxc", "".join(commands)],
        cwd=desk,
        env={"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    public = desk / "public"
    client = Client(public, tmp_path / "client")
    page = client.page("models/support-8b.toml")
    assert 'yanked = "answers in the wrong language"' in page
    assert "[releases.variants.q8]" in page
    assert "Beta" in client.page("beta/models/helper.toml")
    assert client.refresh()._trusted_set.root.version == 3
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in public.rglob("*.*"))
    assert not list(home.rglob("*.pem"))

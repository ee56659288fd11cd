"""The README's example, word for word, in a project that `startproject` has made."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.servers import ROOT

pytestmark = pytest.mark.e2e

README = (ROOT / "README.md").read_text()

# The first line of a block says where it belongs.
BLOCK = re.compile(r"^```(?:python|html)\n(?:#|<!--) ([\w./]+).*\n((?:.*\n)*?)```$", re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A new project with the README's code in it."""
    directory = tmp_path / "project"
    directory.mkdir()
    command = [sys.executable, "-m", "django", "startproject", "mysite", str(directory)]
    subprocess.run(command, check=True)
    for name, code in BLOCK.findall(README):
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(code)
    return directory


def test_example_shows_what_is_published(gunicorn, page: Page, project: Path):
    worker_class, app = re.search(r"^gunicorn -k (\S+) (\S+)$", README, re.MULTILINE).groups()
    command = re.search(r"^python manage.py (rt_publish .+)$", README, re.MULTILINE)[1]
    server = gunicorn(
        app,
        worker_class=worker_class,
        python_path=project,
        env={"DJANGO_SETTINGS_MODULE": "mysite.settings"},  # for manage.py, which is the demo's
    )
    with page.expect_response("**/events"):
        page.goto(server.url("/"))

    published = server.manage(*command.split())
    by_code = server.manage("shell", "--command", (project / "anywhere").read_text())

    assert published.returncode == by_code.returncode == 0, published.stderr + by_code.stderr
    expect(page.locator("#news")).to_have_text('hello\n{"text":"hello"}\n', timeout=30_000)


def test_links_lead_to_files_and_headings_that_exist():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]

    missing = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", without_code(page.read_text()))
        if not exists(page, link)
    ]

    assert missing == []


def test_guide_shows_the_websocket_client_that_the_demo_uses():
    client = (ROOT / "testproject/templates/follow.js").read_text()

    assert f"```javascript\n{client}```\n" in (ROOT / "docs/guide.md").read_text()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def exists(page: Path, link: str) -> bool:
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not heading or heading in anchors(target))


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

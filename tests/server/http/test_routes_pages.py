import re

import pytest

from foreframe_server.routes.pages import page_files

pytestmark = pytest.mark.anyio

PAGES = ["/", "/docs"]
FOREIGN = re.compile(r"https?://(?!www\.w3\.org/)|@import|//cdn|integrity=")
MARKUP_FROM_DATA = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function")
MAX_BYTES = 500_000


def links_of(page):
    return re.findall(r'(?:href|src)="([^"]+)"', page)


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_runs_no_script_and_no_style_but_the_servers(client, path):
    reply = await client.get(path)

    policy = reply.headers["content-security-policy"]
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|<script(?![^>]*src=)|style=|onclick=", reply.text)


@pytest.mark.parametrize("path", PAGES)
async def test_what_a_page_links_answers_and_is_kept_for_good(client, path):
    links = {link for link in links_of((await client.get(path)).text) if not link.startswith("#")}
    replies = {link: await client.get(link) for link in links}

    assert [reply.status_code for reply in replies.values()] == [200] * len(links)
    kept = [reply.headers["cache-control"] for link, reply in replies.items() if link.startswith("/assets/")]
    assert kept
    assert set(kept) == {"public, max-age=31536000, immutable"}


async def test_a_page_that_is_known_is_not_sent_again(client):
    known = (await client.get("/")).headers["etag"]

    again = await client.get("/", headers={"If-None-Match": known})

    assert (again.status_code, again.content) == (304, b"")
    assert (await client.get("/", headers={"If-None-Match": '"other"'})).status_code == 200


async def test_files_of_another_version_or_name_are_not_there(client):
    version = page_files().version
    for path in (f"/assets/{'0' * 16}/app.js", f"/assets/{version}/other.js", f"/assets/{version}/index.html"):
        assert (await client.get(path)).status_code == 404
    assert (await client.get(f"/assets/{version}/app.js")).headers["content-type"] == "text/javascript; charset=utf-8"


def test_every_import_of_a_script_is_shipped():
    files = page_files().contents
    scripts = {name: content.decode() for name, content in files.items() if name.endswith(".js")}
    imported = {found for text in scripts.values() for found in re.findall(r'from "\./([^"]+)"', text)}

    assert imported
    assert imported <= set(files)


def test_files_are_small_load_nothing_from_elsewhere_and_never_write_markup_from_data():
    files = page_files().contents

    assert sum(map(len, files.values())) < MAX_BYTES
    for name, content in files.items():
        assert not FOREIGN.search(content.decode()), name
        assert not MARKUP_FROM_DATA.search(content.decode()), name


def test_the_searches_find_what_is_planted():
    assert FOREIGN.search('<script src="https://planted.invalid/x.js">')
    assert MARKUP_FROM_DATA.search("node.innerHTML = planted")

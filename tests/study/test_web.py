from __future__ import annotations

import base64
import hashlib
import re

import pytest

from pathup.errors import PathUpError
from pathup.study import web
from pathup.study.web import asset, bound, page


def test_values_in_a_page_are_escaped_and_a_missing_one_is_an_error():
    text = bytes(page("error.html", {"said": "<script>alert(1)</script>"}).body).decode()
    assert "<script>" not in text and "&lt;script&gt;" in text
    with pytest.raises(Exception, match="'said' is undefined"):
        page("error.html", {})


def test_pages_hold_no_script_or_style_of_their_own():
    """The content security policy lets files of ours run, and nothing that stands in a page."""
    for template in asset("pathup.css").parents[1].glob("pages/*.html"):
        text = template.read_text(encoding="utf-8")
        assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)", text), template.name
        assert not re.search(r"""(src|href|action)=["'](https?:)?//""", text), template.name


def test_the_one_style_that_is_let_in_is_the_viewers():
    script = asset("openseadragon/openseadragon.min.js").read_text(encoding="utf-8")
    (style,) = re.findall(r'data-openseadragon-mobile-css","true"\);\w+\.textContent="([^"]*)"', script)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in web.HEADERS["content-security-policy"]
    assert "Redistribution and use" in asset("openseadragon/LICENSE.txt").read_text(encoding="utf-8")


def test_a_place_where_nobody_can_listen_is_one_sentence():
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        listening.listen()
        with pytest.raises(PathUpError, match=f"port {port} is in use"):
            bound("127.0.0.1", port)
    for host, port in (("192.0.2.1", 0), ("no such host.", 0), ("127.0.0.1", 70_000)):
        with pytest.raises(PathUpError, match="cannot listen"):
            bound(host, port)

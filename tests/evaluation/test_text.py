from __future__ import annotations

from pathup.evaluation.page import page
from pathup.evaluation.text import figure, interval, percent, table


def test_figures_have_three_digits_and_gaps_a_dash() -> None:
    values = [figure(value) for value in (0.123456, 12.3456, 1234.6, None, -0.00042)]
    assert values == ["0.123", "12.3", "1235", "-", "-0.00042"]
    assert interval({"value": 0.5, "low": 0.4, "high": 0.6}) == "0.5 (0.4 to 0.6)"
    assert interval({"value": 0.5, "low": None, "high": None}, 1000) == "500"
    assert interval(None) == "-" and percent(0.125) == "12.5%" and percent(None) == "-"


def test_a_page_stands_alone_and_says_what_the_text_says(tmp_path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    text = "\n".join(
        [
            "# Title <b>", "", "A **bold** word & *soft* `code`.", "", "## Part", "",
            *table(["a", "b"], [["1", "<2>"], ["3", ""]]), "", "- one", "- two",
        ]
    )  # fmt: skip
    made = page("Title <b>", text, {"Part": [(tmp_path / "a.png", 'What is "seen"')]})
    assert "<title>Title &lt;b&gt;</title>" in made and "<h1>Title &lt;b&gt;</h1>" in made
    assert "<strong>bold</strong> word &amp; <em>soft</em> <code>code</code>" in made
    assert "<td>&lt;2&gt;</td>" in made and made.count("<tr>") == 3 and "<li>two</li>" in made
    assert 'src="data:image/png;base64,' in made and "What is &quot;seen&quot;" in made
    assert made.index("data:image/png") > made.index("<h2>Part</h2>")
    for fetched in ("http://", "https://", "<script", "url("):
        assert fetched not in made

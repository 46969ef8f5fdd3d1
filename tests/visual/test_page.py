"""The page."""

from PIL import Image

from sttm.visual.page import Example, Prediction, report


def test_page_treats_labels_as_text():
    picture = Image.new("RGB", (8, 8))
    example = Example("<b>$title", picture, [Prediction("m", '"><script>', 0.5, True)])
    html = report("a $b & <c>", "s", ["Model"], [["<i>"]], [("<u>", "$x")], [example])
    for raw in ("<script>", "<i>", "<u>", "<c>"):
        assert raw not in html
    for told in ("a $b &amp; &lt;c&gt;", "&lt;b&gt;$title", "&lt;i&gt;", "$x"):
        assert told in html

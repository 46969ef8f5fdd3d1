"""The page."""

from PIL import Image

from sttm.visual.pages.page import Example, Prediction, Section, report


def test_page_treats_labels_as_text():
    picture = Image.new("RGB", (8, 8))
    example = Example("<b>$title", picture, [Prediction("m", '"><script>', 0.5, True)])
    section = Section("<em>", "<s>", ["Model"], [["<i>"]], [example])
    html = report("a $b & <c>", "s", [section], [("<u>", "$x")])
    for raw in ("<script>", "<i>", "<u>", "<c>", "<em>", "<s>"):
        assert raw not in html
    for told in ("a $b &amp; &lt;c&gt;", "&lt;b&gt;$title", "&lt;i&gt;", "$x"):
        assert told in html


def test_every_table_comes_before_all_pictures():
    sections = [Section(name, "", ["Model"], [[name]], [Example(name, Image.new("RGB", (8, 8)), [])]) for name in "ab"]
    html = report("t", "s", sections, [])
    assert html.count("<table>") == html.count("<img ") == 2
    assert html.rindex("</table>") < html.index("<img ")

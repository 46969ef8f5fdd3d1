"""`sttm show`."""


def test_people_get_both_answers_and_a_file(sttm, clips, small_model, tmp_path):
    outcome = sttm("show", clips / "a.mp4", "-o", tmp_path / "a.html", "--model", small_model, "--compute", "0.7")
    assert outcome.code == 0 and outcome.err == f"sttm: what merged is in {tmp_path / 'a.html'}\n"
    assert [line.partition(":")[0] for line in outcome.out.splitlines()] == ["with merging", "without"]
    assert (tmp_path / "a.html").stat().st_size > 5000


def test_json_has_tokens_and_answers(sttm, clips, small_model, tmp_path):
    args = ["show", clips / "a.mp4", "-o", tmp_path / "a.png", "--model", small_model]
    (record,) = sttm(*args, "--json").records
    assert record["output"] == str(tmp_path / "a.png") and record["tokens"][0] == 64 > record["tokens"][-1]
    assert {entry["label"] for entry in record["merged"]} == {"ant", "bee", "cat"}


def test_bad_input_is_one_sentence(sttm, clips, small_model, tmp_path):
    for args, said in (
        (["show", clips / "b.mp4", "-o", tmp_path / "b.png", "--model", small_model], "is a web page"),
        (["show", clips / "a.mp4", "-o", tmp_path / "a.pgn", "--model", small_model], "did you mean .png?"),
        (["show", clips / "a.mp4", "-o", tmp_path / "a.png", "--method", "tome"], "add, say, --compute"),
    ):
        outcome = sttm(*args)
        assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1 and not outcome.out
    assert not list(tmp_path.iterdir())

"""Names of classes: label files of all kinds, and which names depend on left and right."""

from pathlib import Path

import pytest

from sttm.data.datasets.labels import directional, read_labels
from tests.data.helpers import write_lines


@pytest.mark.parametrize(
    "text",
    [
        "hop\nrun\nsit it out\n",
        "\ufeffhop\r\nrun\r\n\r\nsit it out",
        "1 hop\n2 run\n3 sit it out\n",
        "0,hop\n1,run\n2,sit it out\n",
        'id,name\n0,hop\n2,"sit it out"\n1,run\n',
        '{"hop": "0", "sit it out": "2", "run": "1"}',
        '{"\\"hop\\"": 0, "\\"run\\"": 1, "\\"sit it out\\"": 2}',
        '{"0": "hop", "1": "run", "2": "sit it out"}',
        '["hop", "run", "sit it out"]',
        '[["hop"], ["run"], ["sit", "it", "out"]]',
    ],
)
def test_label_files_of_all_kinds_say_the_same(text: str, tmp_path: Path):
    (tmp_path / "labels").write_text(text, encoding="utf-8", newline="")
    classes = read_labels(tmp_path / "labels")
    assert classes.names == ("hop", "run", "sit it out")
    assert [classes.index(label) for label in (0, 1, 2, 3, -1)] == [0, 1, 2, None, None]
    assert [classes.index(label) for label in ("hop", "Sit_it_out", "1", "fly")] == [0, 2, 1, None]


def test_real_label_files_keep_their_numbers(shared_data: Path):
    formats = shared_data / "formats"
    something = read_labels(formats / "ssv2/labels.sample.json")
    whole = read_labels(formats / "mmaction2/sthv2_label_map.txt")
    for number in (0, 1, 2, 173):
        place = something.index(number)
        assert place is not None and something.names[place] == whole.names[number]
    index, whole = (
        read_labels(formats / "ucf101/classInd.sample.txt"),
        read_labels(formats / "mmaction2/ucf101_label_map.txt"),
    )
    for number in (0, 1, 2, 98, 99, 100):
        place = index.index(number)
        assert place is not None and index.names[place] == whole.names[number]


def test_names_that_differ_by_a_capital_are_told_apart(tmp_path: Path):
    classes = read_labels(write_lines(tmp_path / "l", "Turn", "turn", "walk away"))
    assert (classes.index("Turn"), classes.index("turn"), classes.index("TURN")) == (0, 1, None)


SENSITIVE = {
    "mmaction2/sthv2_label_map.txt": 7,
    "mmaction2/jester_label_map.txt": 6,
    "jester/jester-v1-labels.csv": 6,
    "mmaction2/label_map_k400.txt": 0,
    "mmaction2/ucf101_label_map.txt": 0,
    "mmaction2/hmdb51_label_map.txt": 0,
}


@pytest.mark.parametrize("name", SENSITIVE)
def test_real_labels_tell_whether_a_mirror_matters(name: str, shared_data: Path):
    """Counted by hand: grep -iwE 'left|right|clockwise|counterclockwise' finds as many."""
    assert len(directional(read_labels(shared_data / "formats" / name).names)) == SENSITIVE[name]


def test_words_of_direction():
    yes = ["SwipeLeft", "turn_right", "Turning counter-clockwise", "from left to right", "Anti Clockwise", "RIGHT"]
    no = [
        "Moving up",
        "Thumb Down",
        "Putting something upright",
        "swimming breast stroke",
        "leftover",
        "bright",
        "clock",
    ]
    assert directional(no + yes) == yes

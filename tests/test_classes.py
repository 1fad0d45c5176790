"""classes.json: what it may name, and what is refused with one line."""

import json

import pytest

from runtime.messages import InputError
from slices.classes import classes_of, find_classes, read_classes


def test_values_are_in_their_order_and_colours_in_that_of_the_file():
    classes = classes_of({"7": "pore", "2": "matrix"}, "f")
    assert classes.names == ("matrix", "pore")
    assert classes.values == (2, 7)
    assert classes.colours is None
    colours = classes_of({"#ff0000": "pore", "#0000FF": "matrix"}, "f")
    assert colours.names == ("pore", "matrix")
    assert colours.colours == ((255, 0, 0), (0, 0, 255))
    assert colours.values == (1, 2)
    assert colours.is_binary
    assert not classes_of({"1": "a", "2": "b", "3": "c"}, "f").is_binary


def test_what_is_recorded_names_the_same_classes_again():
    for record in ({"1": "matrix", "3": "pore"}, {"#0000ff": "matrix", "#ff0000": "pore"}):
        classes = classes_of(record, "f")
        assert classes_of(classes.record(), "f") == classes
        assert classes_of(classes.by_value().record(), "f") == classes.by_value()


def test_a_class_is_found_by_name_and_by_value():
    classes = classes_of({"2": "matrix", "7": "pore"}, "f")
    assert classes.index("pore") == classes.index("7") == 1
    with pytest.raises(
        InputError, match="crack: no class has this name; there are 2 matrix, 7 pore"
    ):
        classes.index("crack")


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({}, "names 0 classes, expected two or more"),
        ({"1": "matrix"}, "names 1 class, expected two or more"),
        ({"0": "matrix", "1": "pore"}, "gives 0 a name, but 0 is what is not labelled"),
        ({"1": "matrix", "#ff0000": "pore"}, "mixes values and colours"),
        ({"1": "matrix", "-2": "pore"}, "'-2' is neither a whole number nor a colour"),
        ({"1": "matrix", "1.5": "pore"}, "'1.5' is neither a whole number nor a colour"),
        ({"1": "matrix", "70000": "pore"}, "70000 is too large"),
        ({"#ff": "matrix", "#0000ff": "pore"}, "'#ff' is no colour"),
        ({"1": "matrix", "01": "pore"}, "1 and 01 are the same"),
        ({"#ff0000": "matrix", "#FF0000": "pore"}, "#ff0000 and #FF0000 are the same"),
        ({"1": "pore", "2": "pore"}, "two classes are called 'pore'"),
        ({"1": "matrix", "2": " "}, "' ' is no name of a class"),
        ({"1": "matrix", "2": "a\nb"}, "is no name of a class"),
        ({"1": "matrix", "2": 3}, "3 is no name of a class"),
        ({"1": "matrix", "2": "3"}, "would be taken for a value"),
        ({"1": "matrix", "2": "$Fe_{$"}, "for the beginning of a formula"),
        ({"1": "matrix", "2": 50 * "a"}, "take one of at most 40 letters"),
        ({str(i): f"c{i}" for i in range(1, 70)}, "names 69 classes; 64 at most"),
    ],
)
def test_what_label_maps_cannot_hold_is_refused(record, what):
    with pytest.raises(InputError, match=what) as error:
        classes_of(record, "data/x/classes.json")
    assert str(error.value).startswith("data/x/classes.json: ")
    assert "\n" not in str(error.value)


def test_a_value_that_stands_twice_in_the_file_is_refused(tmp_path):
    """JSON itself would keep the last of them without a word."""
    path = tmp_path / "classes.json"
    path.write_text('{"1": "matrix", "2": "pore", "2": "crack"}')
    with pytest.raises(InputError, match="'2' stands twice"):
        read_classes(path)
    path.write_text(json.dumps(["matrix", "pore"]))
    with pytest.raises(InputError, match="holds a list, expected an object"):
        read_classes(path)


def test_a_folder_without_the_file_has_binary_masks(tmp_path):
    assert find_classes(tmp_path) is None

"""Settings that a comparison of runs reads, and their values."""

from gating.run.folder.effect import shown_value


def test_files_of_data_are_compared_by_their_names():
    assert shown_value("data.train", "/a/x.csv") == "x.csv"
    assert shown_value("data.train", ["/a/x.csv", "/b/y.csv"]) == ["x.csv", "y.csv"]
    assert shown_value("data.max_length", 8) == 8

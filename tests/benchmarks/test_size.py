"""The sizes of a package."""

from benchmarks.size import measure, table

MODULE = '''"""A module
of two lines."""

# A comment.
def public(value: int) -> int:
    """Return it."""
    return (
        value
    )


class Thing:
    def untyped(self, value):
        return value

    def _private(self):
        return None
'''


def test_lines_are_told_apart_and_functions_counted_without_docstring(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "__init__.py").write_text("")
    (tmp_path / "part" / "module.py").write_text(MODULE)
    sizes = measure(tmp_path)
    assert sizes.files == {"part/__init__.py": 0, "part/module.py": 17}
    assert (sizes.code, sizes.docstrings) == (9, 3)
    assert sorted(sizes.functions.values()) == [2, 2, 4]
    assert (sizes.public, sizes.typed, sizes.documented) == (2, 1, 1)
    assert sizes.folders == {"part": 1}
    assert sizes.rooms == {"part": [0, 17]}
    assert "| public typed / documented % | 50% / 50% |" in table({"part": sizes})

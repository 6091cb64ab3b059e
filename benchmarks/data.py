"""The data sets of the benchmarks, from the hub or from a folder that has them.

    python -m benchmarks.data OUT
    python -m benchmarks.data OUT --folder FOLDER      without a network, from files with the same digests

Each data set is a folder of OUT with the files train, validation and test, in UTF-8: tables with a line of names and
tabs between the columns, without quotes, or plain text. All are made from data sets of the hub by the rules below.
Every file has the digest of the one that the numbers of the pages were measured with, or is refused.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, load_dataset

from gating.storage.files import move_aside
from gating.tracking.verbosity import quiet_libraries

SPLITS = ("train", "validation", "test")
# Of data sets that the hub has as a program, which no current version of datasets runs, it keeps the tables here.
_TABLES = "refs/convert/parquet"
# The first bytes of the digests of SNLI's chosen pairs, in the order of train, validation and test.
_CHOSEN, _CHOSEN_BYTES, _NUM_TEST = Path(__file__).with_name("snli20k.sha1"), 4, 2000

Table = Iterable[tuple[str, ...]]
# By name.
Splits = Mapping[str, Dataset]


class Source(NamedTuple):
    """A data set.

    Attributes:
        hub: Its name on the hub.
        revision: Its revision there.
        columns: The names of the columns; none for plain text.
        make: Function from the data set of the hub and the name of a split to the rows of its table.
        digests: The first 16 digits of the SHA-256 of the files, in the order of ``SPLITS``.
    """

    hub: str
    revision: str
    columns: tuple[str, ...]
    make: Callable[[Splits, str], Table]
    digests: tuple[str, str, str]


def _sick(data: Splits, split: str) -> Table:
    for row in data[split]:
        yield row["sentence_A"], row["sentence_B"], str(row["label"]), f"{row['relatedness_score']:g}"


def _sst2(data: Splits, split: str) -> Table:
    for row in data[split]:
        yield row["text"].replace("-lrb-", "(").replace("-rrb-", ")"), str(row["label"])


def _trec(data: Splits, split: str) -> Table:
    """Take a tenth of the training questions, by their digest, for validation."""
    names = {name: data["train"].features[name].names for name in ("coarse_label", "fine_label")}
    order = sorted(names["coarse_label"])
    for row in data["test" if split == "test" else "train"]:
        if split == "test" or _is_held_out(row["text"]) == (split == "validation"):
            label = order.index(names["coarse_label"][row["coarse_label"]])
            yield row["text"], str(label), names["fine_label"][row["fine_label"]]


def _snli(data: Splits, split: str) -> Table:
    """Take the 20,000 pairs of the training data that another repository had drawn, by their digests.

    Of 18,000 pairs, those whose premise is in the other 2,000, the test, are left out, and a tenth of the premises is
    for validation.
    """
    found: dict[bytes, tuple[str, ...]] = {}
    for row in data["train"]:
        pair = row["premise"], row["hypothesis"]
        found.setdefault(hashlib.sha1("\t".join(pair).encode()).digest()[:_CHOSEN_BYTES], (*pair, str(row["label"])))
    text = _CHOSEN.read_bytes()
    chosen = [text[at : at + _CHOSEN_BYTES] for at in range(0, len(text), _CHOSEN_BYTES)]
    pairs = [found[digest] for digest in chosen[-_NUM_TEST:] if digest in found]
    if split != "test":
        pairs = [found[digest] for digest in chosen[:-_NUM_TEST] if digest in found]
        pairs = [pair for pair in pairs if _is_held_out(pair[0]) == (split == "validation")]
    yield from pairs


def _wnut(data: Splits, split: str) -> Table:
    names = data[split].features["ner_tags"].feature.names
    for row in data[split]:
        yield " ".join(row["tokens"]), " ".join(names[tag] for tag in row["ner_tags"])


def _multi30k(data: Splits, split: str) -> Table:
    for row in data[split]:
        yield row["en"], row["de"]


def _shakespeare(data: Splits, split: str) -> Table:
    for row in data[split]:
        yield (row["text"],)


def _is_held_out(text: str) -> bool:
    """Return whether a text is of the tenth for validation."""
    return int(hashlib.sha1(text.encode()).hexdigest(), 16) % 10 == 0


SOURCES = {
    "sick": Source(
        "RobZamp/sick",
        _TABLES,
        ("text_a", "text_b", "label", "relatedness"),
        _sick,
        ("8ebeaa83a75f52e1", "38729a35facde502", "37dacbc140b9c9f6"),
    ),
    "sst2_sentence": Source(
        "SetFit/sst2",
        "main",
        ("text", "label"),
        _sst2,
        ("ae1981735f6e5d6a", "86287e6f67e13807", "ad820d3183392bdc"),
    ),
    "snli20k": Source(
        "stanfordnlp/snli",
        "main",
        ("text_a", "text_b", "label"),
        _snli,
        ("c093f18814285b7f", "166b9b295bf4ac52", "d40be78c79d915c0"),
    ),
    "trec": Source(
        "CogComp/trec",
        _TABLES,
        ("text", "label", "fine_label"),
        _trec,
        ("b5c398fbe6ce95ec", "c98456947f7fd76d", "a32e5aae47675e0c"),
    ),
    "wnut17": Source(
        "leondz/wnut_17",
        _TABLES,
        ("text", "label"),
        _wnut,
        ("06b913dfdbfaa076", "e72329be62484ddc", "dbfa7625cba1e56d"),
    ),
    "multi30k": Source(
        "bentrevett/multi30k",
        "main",
        ("text_a", "text_b"),
        _multi30k,
        ("aad41a2af12abb7c", "2d1004c0f387279e", "e87982e19c52a23d"),
    ),
    "tinyshakespeare": Source(
        "karpathy/tiny_shakespeare",
        _TABLES,
        (),
        _shakespeare,
        ("a9e24e23a1ec7774", "c64e90c160750d91", "8b5a8c8af4590554"),
    ),
}


def main() -> None:
    """Write the data sets that are not there yet."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of the data sets")
    parser.add_argument("--folder", type=Path, help="a folder with the files, for a machine without a network")
    parser.add_argument("--only", nargs="+", choices=SOURCES, default=list(SOURCES), help="data sets (default: all)")
    options = parser.parse_args()
    quiet_libraries()
    failed: list[str] = []
    for name in options.only:
        try:
            for line in write(name, SOURCES[name], options.out, folder=options.folder):
                print(line, flush=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            failed.append(name)
            print(f"{name}: {error}", flush=True)
            if isinstance(error, ConnectionError):
                break
    if failed:
        raise SystemExit(f"{failed[0]} could not be written. With a folder that has the files: --folder FOLDER.")


def write(name: str, source: Source, out: Path, *, folder: Path | None) -> Iterator[str]:
    """Write the files of a data set that are not there yet, and say of each what was done.

    Args:
        name: Its name.
        source: Where it comes from.
        out: The folder of all data sets.
        folder: A folder that has the files; None for the hub.

    Raises:
        ValueError: A file is another one than that of the pages; it is not written.
    """
    data: Splits | None = None
    for split, digest in zip(SPLITS, source.digests, strict=True):
        path = out / name / f"{split}.{'tsv' if source.columns else 'txt'}"
        if path.is_file() and _digest(path.read_bytes()) == digest:
            yield f"{path} is there"
            continue
        if folder is not None:
            content, where = (folder / name / path.name).read_bytes(), str(folder / name / path.name)
        else:
            data = data or load_dataset(source.hub, revision=source.revision)
            content, where = _content(source, source.make(data, split)), f"{source.hub} on the hub"
        if _digest(content) != digest:
            raise ValueError(f"{where} is not the data of the pages: {path.name} has {_digest(content)}, not {digest}.")
        move_aside(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        yield f"{path} is written"


def _content(source: Source, rows: Table) -> bytes:
    if not source.columns:
        return "".join(text for row in rows for text in row).encode()
    return "".join("\t".join(row) + "\n" for row in (source.columns, *rows)).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    main()

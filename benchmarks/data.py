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
# As sha256sum writes it, which also checks it: sha256sum -c.
DIGESTS = {
    path: digest
    for digest, path in map(str.split, Path(__file__).with_name("data.sha256").read_text("utf-8").splitlines())
}
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
    """

    hub: str
    revision: str
    columns: tuple[str, ...]
    make: Callable[[Splits, str], Table]


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


_PAIR = ("text_a", "text_b", "label")
SOURCES = {
    "sick": Source("RobZamp/sick", _TABLES, (*_PAIR, "relatedness"), _sick),
    "sst2_sentence": Source("SetFit/sst2", "main", ("text", "label"), _sst2),
    "snli20k": Source("stanfordnlp/snli", "main", _PAIR, _snli),
    "trec": Source("CogComp/trec", _TABLES, ("text", "label", "fine_label"), _trec),
    "wnut17": Source("leondz/wnut_17", _TABLES, ("text", "label"), _wnut),
    "multi30k": Source("bentrevett/multi30k", "main", _PAIR[:2], _multi30k),
    "tinyshakespeare": Source("karpathy/tiny_shakespeare", _TABLES, (), _shakespeare),
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
    for split in SPLITS:
        place = f"{name}/{split}.{'tsv' if source.columns else 'txt'}"
        path = out / place
        if path.is_file() and _is_that_of_the_pages(path.read_bytes(), place):
            yield f"{path} is there"
            continue
        if folder is not None:
            content, where = (folder / place).read_bytes(), str(folder / place)
        else:
            data = data or load_dataset(source.hub, revision=source.revision)
            content, where = _content(source, source.make(data, split)), f"{source.hub} on the hub"
        if not _is_that_of_the_pages(content, place):
            raise ValueError(f"{where} is not the data of the pages: another digest than {place} in data.sha256.")
        move_aside(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        yield f"{path} is written"


def _is_that_of_the_pages(content: bytes, place: str) -> bool:
    return hashlib.sha256(content).hexdigest() == DIGESTS[place]


def _content(source: Source, rows: Table) -> bytes:
    if not source.columns:
        return "".join(text for row in rows for text in row).encode()
    return "".join("\t".join(row) + "\n" for row in (source.columns, *rows)).encode()


if __name__ == "__main__":
    main()

"""The data sets: where each lies below the data folder, how it is read, where it can be fetched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from lowdyn.data import cifar, idx, usps
from lowdyn.data.checks import Arrays, DataMissing
from lowdyn.data.download import download as fetch
from lowdyn.data.images import ImageSet


@dataclass(frozen=True)
class _Form:
    """One way a split may lie on the disk: its files, in the order ``read`` wants them."""

    files: tuple[tuple[str, ...], ...]  # for each file its possible names (patterns), the first there counts
    read: Callable[[Sequence[Path]], Arrays]

    def search(self, place: Path) -> list[list[Path]]:
        """Return the paths in ``place`` for each of the files."""
        return [
            next(filter(None, (sorted(place.glob(pattern)) for pattern in patterns)), []) for patterns in self.files
        ]


@dataclass(frozen=True)
class _Split:
    size: int
    forms: tuple[_Form, ...]  # the first that is complete is read, so official ones come before subsets
    downloads: Mapping[str, str]  # official file: its published MD5


@dataclass(frozen=True)
class _Source:
    folders: tuple[str, ...]  # below the data folder; downloads go into the first
    url: str
    class_names: tuple[str, ...]
    splits: Mapping[str, _Split]  # "train", "test"


_Batches: TypeAlias = tuple[tuple[str, ...], str]  # the official files of a split, the pattern of its subsets


def _mnist_family(folders: tuple[str, ...], url: str, class_names: tuple[str, ...], *md5: str) -> _Source:
    """28 × 28 grey images in IDX files; ``md5`` of train images, train labels, test images, test labels."""

    def split(prefix: str, size: int, *md5: str) -> _Split:
        names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        read = partial(idx.read_pair, shape=(28, 28), most=size, num_classes=len(class_names))
        form = _Form(tuple((name, f"{name}.gz") for name in names), read)
        return _Split(size, (form,), {f"{name}.gz": h for name, h in zip(names, md5, strict=True)})

    splits = {"train": split("train", 60_000, *md5[:2]), "test": split("t10k", 10_000, *md5[2:])}
    return _Source(folders, url, class_names, splits)


def _cifar(name: str, official: cifar.Official, splits: tuple[_Batches, _Batches], md5: str) -> _Source:
    archive = f"cifar-{name.removeprefix('cifar')}-binary.tar.gz"

    def split(size: int, batches: tuple[str, ...], subset: str) -> _Split:
        forms = (
            _Form(tuple((batch,) for batch in batches), partial(cifar.read_batches, official=official)),
            _Form(((archive,),), partial(cifar.read_archive, members=batches, official=official)),
            _Form(((subset,),), partial(cifar.read_subsets, most=size, class_names=official.class_names)),
        )
        return _Split(size, forms, {archive: md5})

    train, test = splits
    both = {"train": split(50_000, *train), "test": split(10_000, *test)}
    return _Source((name, "."), "https://www.cs.toronto.edu/~kriz/", official.class_names, both)


def _usps() -> _Source:
    def split(size: int, text: str, libsvm: str, md5: str) -> _Split:
        forms = (
            _Form(((text.removesuffix(".gz"), text),), partial(usps.read_text, most=size)),
            _Form(((libsvm,),), partial(usps.read_libsvm, most=size)),
        )
        return _Split(size, forms, {libsvm: md5})

    splits = {
        "train": split(7291, "zip.train.gz", "usps.bz2", "ec16c51db3855ca6c91edd34d0e9b197"),
        "test": split(2007, "zip.test.gz", "usps.t.bz2", "8ea070ee2aca1ac39742fdd1ef5ed118"),
    }
    url = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
    return _Source(("usps", "USPS", "."), url, _DIGIT_NAMES, splits)


_DIGIT_NAMES = tuple("0123456789")
_SOURCES = {
    "mnist": _mnist_family(
        ("mnist", "MNIST/raw"),
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        _DIGIT_NAMES,
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion_mnist": _mnist_family(
        ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    "cifar10": _cifar(
        "cifar10",
        cifar.CIFAR10,
        ((cifar.TRAIN, "cifar10-train-subset-part[0-9].npz"), (cifar.TEST, "cifar10-test-subset.npz")),
        "c32a1d4ab5d03f1284b67883e8d87530",
    ),
    "cifar100": _cifar(
        "cifar100",
        cifar.CIFAR100,
        (
            (("cifar-100-binary/train.bin",), "cifar100-train-subset.npz"),
            (("cifar-100-binary/test.bin",), "cifar100-test-subset.npz"),
        ),
        "03b5dce01913d631647c71ecec9e9cb8",
    ),
    "usps": _usps(),
}

IMAGE_SETS = ("digits", *_SOURCES)
"""Names that ``load_images`` knows."""


def load_images(
    name: str, folder: str | os.PathLike[str] | None = None, split: str = "train", download: bool = False
) -> ImageSet:
    """Load the ``split`` ("train" or "test") of the data set ``name``, one of ``IMAGE_SETS``, as an ImageSet.

    ``digits`` comes with scikit-learn: of its 1 797 images of 8 × 8 pixels from 0 to 16 the first 1 500 are
    "train" and the last 297 "test". The others are read from ``folder`` (default: the environment variable
    LOWDYN_DATA), each from its own subfolder: IDX files for ``mnist`` and ``fashion_mnist``, gzipped or not;
    for ``cifar10`` and ``cifar100`` (its hundred fine classes) the official binary archive or its extracted
    batches, else subsets as .npz; for ``usps`` the text files zip.train.gz and zip.test.gz, else LIBSVM's
    usps.bz2 and usps.t.bz2 (smoothed otherwise). A file may
    hold fewer images than the official one, see ``ImageSet.used``. With ``download`` a set that is not there
    is fetched first (needs pooch), and must have the published MD5.

    ValueError for an unknown name or split, DataMissing if the set is not there, DataError if a file is
    damaged or holds something else.

    >>> load_images("digits", split="test").used
    '297 of 1 797 images'
    """
    check_choice("name", name, IMAGE_SETS)
    check_choice("split", split, ("train", "test"))
    if name == "digits":
        return _load_digits(split)
    source = _SOURCES[name]
    wanted = source.splits[split]
    root = data_folder(folder)
    if root is None:
        wish = ", ".join(f"{source.folders[0]}/{file}" for file in wanted.downloads)
        raise DataMissing(
            f"{name} ({split}): no data folder; pass folder= (on the command line --data-dir) or set "
            f"LOWDYN_DATA, and put {wish} from {source.url} there or load with download=True"
        )
    found = _find(source, split, root)
    if found is None and download:
        fetch(source.url, wanted.downloads, root / source.folders[0])
        found = _find(source, split, root)
    if found is None:
        raise DataMissing(_missing(name, split, root))
    form, paths = found
    images, labels = form.read(paths)
    return ImageSet(name, split, images, labels, source.class_names, full_size=wanted.size)


def available(name: str, folder: str | os.PathLike[str] | None = None) -> bool:
    """Whether the files of both splits of ``name`` are there; none is opened. ValueError for an unknown name.

    >>> available("digits")
    True
    """
    check_choice("name", name, IMAGE_SETS)
    root = data_folder(folder)
    return name == "digits" or (
        root is not None and all(_find(_SOURCES[name], split, root) for split in ("train", "test"))
    )


def _load_digits(split: str) -> ImageSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = slice(None, 1500) if split == "train" else slice(1500, None)
    images, labels = digits.images[part].astype(np.uint8), digits.target[part].astype(np.int64)
    return ImageSet("digits", split, images, labels, _DIGIT_NAMES, full_size=len(digits.target), peak=16)


def data_folder(folder: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder that is meant: the one given, else that of LOWDYN_DATA, else None."""
    chosen = os.environ.get("LOWDYN_DATA") if folder is None else folder
    return Path(chosen).expanduser() if chosen else None


def _searches(source: _Source, split: str, root: Path) -> Iterator[tuple[_Form, list[list[Path]]]]:
    for form in source.splits[split].forms:
        for place in source.folders:
            yield form, form.search(root / place)


def _find(source: _Source, split: str, root: Path) -> tuple[_Form, list[Path]] | None:
    for form, found in _searches(source, split, root):
        if all(found):
            return form, [path for paths in found for path in paths]
    return None


def _missing(name: str, split: str, root: Path) -> str:
    source = _SOURCES[name]
    official = list(source.splits[split].downloads)
    absent = official
    for form, found in _searches(source, split, root):
        if any(found):  # a set that is nearly there: name what it lacks
            absent = [patterns[-1] for patterns, paths in zip(form.files, found, strict=True) if not paths]
            break
    places = " or ".join(str(root / place) for place in source.folders)
    address = source.url + next((file for file in official if file in absent), official[0])
    return f"{name} ({split}): no {', '.join(absent)} in {places}; get it from {address} or with download=True"


def check_choice(argument: str, value: str, allowed: Sequence[str]) -> None:
    """ValueError with the list unless ``value`` is one of ``allowed``; lowdyn.arguments would import torch."""
    if value not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, allowed))}, got {value!r}")

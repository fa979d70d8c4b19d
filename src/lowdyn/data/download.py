"""Files fetched from their public place, kept only if they have the published MD5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lowdyn.data.checks import DataError, DataMissing, one_line


def download(url: str, md5_of: Mapping[str, str], folder: Path) -> None:
    """Fetch the files named by ``md5_of`` from ``url`` (ending in /) into ``folder``, unless they are there.

    DataMissing if the network or the disk refuses, DataError for a file with another MD5, which is
    not kept; ModuleNotFoundError without pooch.
    """
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('downloading needs pooch: pip install "lowdyn[reproduce]"') from error
    registry = {name: f"md5:{md5}" for name, md5 in md5_of.items()}
    store = pooch.create(path=folder, base_url=url, registry=registry, retry_if_failed=2)
    for name in md5_of:
        # A file that is there is the reader's to judge: pooch would replace one with other gzip settings.
        if (folder / name).exists():
            continue
        try:
            store.fetch(name)
        except OSError as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise DataMissing(
                f"{folder / name}: {url}{name} could not be fetched ({reason}); try again, or put it there"
            ) from error
        except ValueError as error:
            raise DataError(f"{folder / name}: not kept, it is not the published file ({one_line(error)})") from error

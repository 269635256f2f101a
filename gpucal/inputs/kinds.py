"""Recognise files whose content does not match their name: one table of how each kind begins, with the mend."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gpucal.errors import InputError
from gpucal.inputs.files import AGAIN, shortened

__all__ = ["HEAD", "mistaken"]

HEAD = 512
"""Number of bytes at the beginning of a file that tell its kind."""

# Mends. `{file}` is the file's name, `{wanted}` the format that it should have.
_SIGN_IN = "download it again, signed in: a server sent this in place of the file"
_CONVERT = "convert it to {wanted}, or " + AGAIN
_SPACE = rb"(?:\xef\xbb\xbf)?\s*"
_LETTER = rb"(?:[\t -~]|[\xc2-\xf4][\x80-\xbf]{1,3})"


def _unpack(ending: str, how: str) -> str:
    return f"rename it to {{file}}{ending} and {how}"


@dataclass(frozen=True)
class _Kind:
    """One kind of file.

    Parameters
    ----------
    name : str
        The kind's name in messages.
    begins : bytes
        Regular expression of the first `HEAD` bytes.
    mend : str
        The mend in messages.
    of : str
        The format that this kind belongs to; a file that should have this format is in order.
    quoted : bool
        Quote the beginning of the file in the message.
    """

    name: str
    begins: bytes
    mend: str
    of: str = ""
    quoted: bool = False


# In this order; the first that fits is the file's kind.
_KINDS = (
    _Kind("an empty one", rb"\Z", AGAIN, of="CSV"),
    _Kind("zeros, as a download that broke off leaves", rb"\0+\Z", AGAIN),
    _Kind("a Parquet file", rb"PAR1", _CONVERT, of="Parquet"),
    _Kind("a NumPy archive (.npz)", rb"PK\x03\x04.{26}[ -~]{0,99}?\.npy", _CONVERT),
    _Kind("an Excel workbook", rb"PK\x03\x04.{26}\[Content_Types\]", _CONVERT),
    _Kind("a ZIP archive", rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", _unpack(".zip", "unzip it")),
    _Kind("a gzip file", rb"\x1f\x8b", _unpack(".gz", "gunzip it")),
    _Kind("a bzip2 file", rb"BZh[1-9]1AY&SY", _unpack(".bz2", "bunzip2 it")),
    _Kind("an xz file", rb"\xfd7zXZ\0", _unpack(".xz", "unxz it")),
    _Kind("a Zstandard file", rb"\x28\xb5\x2f\xfd", _unpack(".zst", "unzstd it")),
    _Kind("a 7z archive", rb"7z\xbc\xaf\x27\x1c", _unpack(".7z", "extract it")),
    _Kind("a RAR archive", rb"Rar!\x1a\x07", _unpack(".rar", "extract it")),
    _Kind("a tar archive", rb".{257}ustar", _unpack(".tar", "extract it")),
    _Kind("a Git LFS pointer", rb"version https://git-lfs\.github\.com/", "run `git lfs pull` in its repository"),
    _Kind("a git-annex pointer", rb"(?:(?:\.\./)*\.git)?/annex/objects/", "run `git annex get` in its repository"),
    _Kind("a web page (HTML)", _SPACE + rb"(?i:(?:<!--.*?-->\s*)?<(?:!doctype html|html|head|body))", _SIGN_IN),
    _Kind("an XML text", _SPACE + rb"<(?:\?xml|[A-Za-z]+>)", _SIGN_IN, quoted=True),
    _Kind("a JSON text", _SPACE + rb'(?:\{\s*["}]|\[\s*[\[{"\]])', _SIGN_IN, quoted=True),
    _Kind("an HDF5 file", rb"\x89HDF\r\n\x1a\n", _CONVERT),
    _Kind("a NumPy file (.npy)", rb"\x93NUMPY", _CONVERT),
    _Kind("an Arrow or Feather file", rb"ARROW1|FEA1", _CONVERT),
    _Kind("a FITS file", rb"SIMPLE  =", _CONVERT),
    _Kind("a text table (CSV)", rb"%b*[,;\t]%b*(?:\r?\n|(?<=.{512}))" % (_LETTER, _LETTER), _CONVERT, of="CSV"),
    _Kind("a text", rb"(?:[\r\n]|%b)+(?:\Z|[\xc2-\xf4])" % _LETTER, AGAIN, of="CSV", quoted=True),
)


def mistaken(head: bytes, path: Path, wanted: str) -> InputError | None:
    """Return an error that names the file's kind, judged by its first `HEAD` bytes.

    None means that the file has the format ``wanted`` ('Parquet' or 'CSV'), or is of no known kind.
    """
    kind = next((kind for kind in _KINDS if re.match(kind.begins, head, re.DOTALL)), None)
    if kind is None or kind.of == wanted:
        return None
    name = kind.name
    if kind.quoted:
        name += f" that begins with {_beginning(head)}"
    mend = kind.mend.format(file=path.name, wanted=wanted)
    return InputError(f"is not a {wanted} file but {name}", mend, path)


def _beginning(head: bytes) -> str:
    return shortened(repr(head.decode("utf-8-sig", errors="replace").strip().partition("\n")[0][:60]))

"""Downloads into a cache: resumed where they broke off, verified, and only over http(s)."""

import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request

import tqdm

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop.importing import bar

TRIES = 8  # connections in a row that bring nothing new before giving up
PAUSE_SECONDS = 1.0  # before the second of them; doubles from one to the next
TIMEOUT_SECONDS = 60.0
BLOCK = 1 << 20


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects from web to web, and never from https to http."""

    def redirect_request(self, request, file, code, message, headers, url):
        before, after = (urllib.parse.urlsplit(u).scheme for u in (request.full_url, url))
        if after not in ("http", "https") or (before, after) == ("https", "http"):
            raise UserError(f"--from: {request.full_url} redirects to {url}, which is not followed")
        return super().redirect_request(request, file, code, message, headers, url)


def is_url(source: str) -> bool:
    """Whether a source is a URL rather than a path."""
    return "://" in source


def cache_folder(kind: str = "weights") -> pathlib.Path:
    """Where downloads land, or what is made of them: `MAE_PP_JAX_CACHE`, else `~/.cache/mae_pp_jax`, in `kind`/."""
    return pathlib.Path(os.environ.get("MAE_PP_JAX_CACHE") or storage.user_cache()) / kind


def fetch(url: str, *, sha256: str = "", md5_prefix: str = "") -> pathlib.Path:
    """The local file of a URL, downloaded unless the cache has it.

    A download that broke off goes on where it was, if the server still has the same file. Its length is compared with
    what the server said, and its digest with what is known; the SHA-256 found is kept beside it and compared when the
    file is used again.

    Args:
      url: http(s), or file for one on this machine.
      sha256: of the file; empty: not known.
      md5_prefix: first digits of its MD5, as some publishers print them; empty: not known.

    Raises:
      UserError: it cannot be had, or is not the file it should be (then it is removed).
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        return pathlib.Path(urllib.request.url2pathname(parts.path))
    if parts.scheme not in ("http", "https"):
        raise UserError(f"--from: {url}: only http, https and file URLs are read")
    # The cache's own name for it: the last part of the URL, cleaned, in a folder of the URL's hash.
    name = re.sub(r"[^A-Za-z0-9._-]", "_", pathlib.PurePosixPath(parts.path).name).lstrip(".") or "weights"
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]
    target, note = folder / name, folder / (name + ".json")
    with storage.writing(folder, "MAE_PP_JAX_CACHE"):
        folder.mkdir(parents=True, exist_ok=True)
        if not (target.is_file() and note.is_file()):
            _download(url, folder / (name + ".part"), folder / (name + ".part.json"))
            os.replace(folder / (name + ".part"), target)
            (folder / (name + ".part.json")).unlink(missing_ok=True)
        found = _verify(url, target, storage.read_json(note) if note.is_file() else {}, sha256, md5_prefix)
        storage.write_json(note, found)
    return target


def _verify(url: str, file: pathlib.Path, note: dict, sha256: str, md5_prefix: str) -> dict:
    """Digests of a file as known, computed where they are not; removes a file that differs."""
    stat = dict(size=file.stat().st_size, mtime_ns=file.stat().st_mtime_ns)
    found = dict(note)
    if any(note.get(name) != value for name, value in stat.items()):
        digests = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with file.open("rb") as content, bar(f"verifying {file.name}", stat["size"]) as progress:
            while block := content.read(BLOCK):
                for digest in digests:
                    digest.update(block)
                progress.update(len(block))
        found = dict(stat, url=url, sha256=digests[0].hexdigest(), md5=digests[1].hexdigest())
    known = {"sha256": sha256 or note.get("sha256", ""), "md5": md5_prefix}
    for name, value in known.items():
        if not found[name].startswith(value):
            file.unlink()
            file.with_name(file.name + ".json").unlink(missing_ok=True)
            raise UserError(
                f"--from: {url}: the file has {name} {found[name]} instead of {value} and was removed; try again, or "
                "get it from another place"
            )
    return found


def _download(url: str, part: pathlib.Path, note: pathlib.Path) -> None:
    """Completes `part`; `note` remembers which version of the file it is a part of."""
    state = storage.read_json(note) if note.is_file() and part.is_file() else {}
    if not state:
        part.unlink(missing_ok=True)
    failures, problem = 0, ""
    with bar(f"downloading {part.stem}", state.get("length") or 0) as progress:
        progress.update(part.stat().st_size if part.is_file() else 0)
        while failures < TRIES:
            before = part.stat().st_size if part.is_file() else 0
            if state and before == state["length"]:
                return
            try:
                state = _go_on(url, part, note, state, progress)
                if state["length"] is None or part.stat().st_size == state["length"]:
                    return
                problem = f"the connection ended at {part.stat().st_size:,} of {state['length']:,} bytes"
            except urllib.error.HTTPError as error:
                if 300 <= error.code < 400:  # what urllib does not follow, such as to file:
                    to = error.headers.get("Location")
                    raise UserError(f"--from: {url} redirects to {to}, which is not followed") from error
                if error.code in (404, 403, 401, 410):
                    raise UserError(f"--from: {url}: the server says {error.code} {error.reason}") from error
                problem = f"the server says {error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:  # URLError and dropped connections among them
                if isinstance(error, OSError) and error.errno in (28, 13, 30):  # of the disk, not of the network
                    raise
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            after = part.stat().st_size if part.is_file() else 0
            failures = 0 if after > before else failures + 1
            if failures:
                time.sleep(min(PAUSE_SECONDS * 2 ** (failures - 1), 30.0) if failures < TRIES else 0)
    raise UserError(f"--from: {url}: cannot be downloaded ({problem}); the same command goes on where it stopped")


def _go_on(url: str, part: pathlib.Path, note: pathlib.Path, state: dict, progress: tqdm.tqdm) -> dict:
    """One connection: asks for what is missing and appends it; gives the version and length of the file."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if have and state.get("version"):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", state["version"])
    opener = urllib.request.build_opener(_WebOnly)
    with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
        rest = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range") or "")
        length = answer.headers.get("Content-Length")
        if answer.status == 206 and rest and int(rest[1]) == have:
            total = int(rest[2])
        else:  # the server sends all of it again, or another version
            progress.update(-have)
            have, total = 0, int(length) if length else None
        etag = answer.headers.get("ETag") or ""
        version = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified") or ""
        state = dict(length=total, version=version)
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise UserError(f"--from: {url}: {total - have:,} bytes are missing, {free:,} are free in {part.parent}")
        progress.total = total
        note.write_text(json.dumps(state))
        with part.open("ab" if have else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                progress.update(len(block))
    return state

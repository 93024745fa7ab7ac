"""The bundle: the tracked files of the checkout as they are on the disk, and a note of what they are."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from gpt_jax.config.errors import UserError

NOTE = "launch.json"  # in the bundle: the commit, and the hash of what differs from it


@dataclass(frozen=True)
class Bundle:
    """A gzipped tar archive, the same bytes for the same files.

    Attributes:
      commit: what the checkout is based on.
      changed: tracked files that differ from it.
      untracked: files that git would not ignore and that are left out.
    """

    content: bytes
    commit: str
    changed: tuple[str, ...]
    untracked: tuple[str, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:12]

    @property
    def note(self) -> str:
        """A line for a person."""
        parts = [f"bundle {self.digest}: {len(self.content) / 2**20:.1f} MiB, commit {self.commit[:12]}"]
        if self.changed:
            parts.append(f"with changes in {_some(self.changed)}")
        if self.untracked:
            parts.append(f"without {_some(self.untracked)}, which git does not track")
        return ", ".join(parts)


def make_bundle(checkout: Path) -> Bundle:
    """The bundle of the checkout at `checkout`.

    Raises:
      UserError: it is not a git checkout.
    """
    top = _git(checkout, "rev-parse", "--show-toplevel").decode().strip()
    commit = _git(checkout, "rev-parse", "HEAD").decode().strip()
    names = [name for name in _git(checkout, "ls-files", "-z", "--full-name", top).decode().split("\0") if name]
    diff = _git(checkout, "diff", "--binary", "HEAD")
    changed = _git(checkout, "diff", "--name-only", "-z", "HEAD").decode().split("\0")[:-1]
    untracked = _git(checkout, "ls-files", "-z", "--others", "--exclude-standard", top).decode().split("\0")[:-1]
    note = {"commit": commit, "diff": hashlib.sha256(diff).hexdigest() if diff else None, "changed": changed}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in sorted(names):
            _add(archive, Path(top, name), name)
        content = (json.dumps(note, indent=2) + "\n").encode()
        archive.addfile(_plain(tarfile.TarInfo(NOTE), len(content)), io.BytesIO(content))
    content = gzip.compress(buffer.getvalue(), 6, mtime=0)
    return Bundle(content, commit, tuple(changed), tuple(untracked))


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """Adds a file; one that was deleted, or a submodule, is left out."""
    if not path.is_symlink() and not path.is_file():
        return
    info = archive.gettarinfo(path, name)
    if info.isreg():
        with path.open("rb") as file:
            archive.addfile(_plain(info, info.size), file)
    else:
        archive.addfile(_plain(info, 0))


def _plain(info: tarfile.TarInfo, size: int) -> tarfile.TarInfo:
    info.size, info.mtime, info.uid, info.gid, info.uname, info.gname = size, 0, 0, 0, "", ""
    info.mode = 0o755 if info.mode & 0o100 else 0o644
    return info


def _git(checkout: Path, *arguments: str) -> bytes:
    try:
        return subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise UserError("git is missing: install it, the launcher bundles the files that it tracks") from None
    except subprocess.CalledProcessError as error:
        message = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{checkout} cannot be bundled ({' '.join(message)}): run this in a git checkout") from None


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

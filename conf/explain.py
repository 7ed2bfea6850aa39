"""Hydra's error messages, ten lines long, in one line that names the fix."""

import re

from optimeter.conf import CONF
from optimeter.measure.jobs.outcomes import nearest


def explain(error: BaseException) -> str:
    """One line for an exception of Hydra or OmegaConf."""
    text = " ".join(part for one in _chain(error) for part in str(one).splitlines())
    choice = re.search(r"Could not find '([^'/]+)/([^']+)'", text)
    if choice and getattr(error, "options", None) is not None:
        group, name = choice.groups()
        ours = [str(path.relative_to(CONF / group).with_suffix("")) for path in (CONF / group).glob("*/*.yaml")]
        return f"{group}={name}: no such {group}{nearest(name, [*error.options, *ours])}"  # type: ignore[attr-defined]
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        return f"{key[1]}: no such key{_nearest_key(error, key[1])} (a new one is added with +{key[1]}=…)"
    if (
        "no viable alternative" in text
        or "mismatched input" in text
        or "extraneous input" in text
        or "token recognition" in text
    ):
        return f"{text.split('See https', 1)[0].strip()} (quote a value with special characters: 'key=\"value\"')"
    return text.split("See https", 1)[0].strip() or type(error).__name__


def _chain(error: BaseException) -> list[BaseException]:
    return [error] if error.__cause__ is None else [error, *_chain(error.__cause__)]


def _nearest_key(error: BaseException, path: str) -> str:
    """The closest key beside the unknown one, with the path that leads to it."""
    parents = (getattr(one, "parent_node", None) for one in _chain(error))
    parent = next((node for node in parents if node is not None), None)
    if parent is None:
        return ""
    head, _, last = path.rpartition(".")
    hint = nearest(last, (str(key) for key in parent if key not in ("hydra", "about") and str(key)[0] != "_"))
    return re.sub(r"mean (\S+)\?", rf"mean {head + '.' if head else ''}\1?", hint)

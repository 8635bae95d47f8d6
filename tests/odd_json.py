"""JSON contents with something odd in every place, for tests of the readers."""

import copy
import json
import math

ODD = (None, True, -1.5, "x", [], {"x": None}, 10**400, math.nan)
DEEP = "[" * 300 + "]" * 300


def places(content, place=()):
    """The place of every value in `content`, itself included."""
    yield place
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in parts:
        yield from places(value, (*place, key))


def changed(content, place: tuple, value):
    """A copy of `content` with `value` at `place`; Ellipsis removes what stands there."""
    if not place:
        return value
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return content


def odd_texts(content, more=()):
    """(what is odd, the text of a JSON file) for `content` with one value changed, removed or there twice.

    more: values to put into each place besides ODD.
    """
    for place in places(content):
        for value in (*ODD, *more, ...) if place else (*ODD, *more):
            yield (place, value), json.dumps(changed(content, place, value))
        marked = json.dumps(changed(content, place, "MARK"))
        yield (place, "deep"), marked.replace('"MARK"', DEEP)
        yield (place, "1e400"), marked.replace('"MARK"', "1e400")
        if place and isinstance(place[-1], str):
            yield (place, "twice"), marked.replace('"MARK"', f"1, {json.dumps(place[-1])}: 2")

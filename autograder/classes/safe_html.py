"""A student's Markdown as HTML that runs nothing, for feedback and for formgrader.

Formgrader shows it within the instructor's own Jupyter server: a script there could do all that
the instructor can. nbgrader's templates have no setting for this.
"""

from __future__ import annotations

import re

import bleach
from nbconvert.filters import strip_files_prefix

HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
TAGS = HEADINGS | set(
    "a abbr b blockquote br code dd del details div dl dt em hr i img ins kbd li ol p pre s samp "
    "span strong sub summary sup table tbody td tfoot th thead tr tt u ul".split())
PICTURE = re.compile("data:image/(png|jpeg|gif);")
ATTRIBUTES = {"a": {"href", "title"}, "img": {"src", "alt", "title", "width", "height"},
              "td": {"align", "colspan", "rowspan"}, "th": {"align", "colspan", "rowspan"},
              "ol": {"start"}, "details": {"open"}}  # fmt: skip


def strip_files_prefix_safely(html: str) -> str:
    """nbconvert's filter of that name, which its templates apply to every rendered text."""
    return bleach.clean(strip_files_prefix(html), tags=TAGS, attributes=_allowed,
                        protocols={"http", "https", "mailto", "data", "attachment"})


def _allowed(tag: str, name: str, value: str) -> bool:
    if name == "class" or (name == "id" and tag in HEADINGS):
        return True
    if re.sub(r"[^\w:/;,+-]", "", value).lower().startswith("data:"):
        return (tag, name) == ("img", "src") and bool(PICTURE.match(value))
    return name in ATTRIBUTES.get(tag, ())

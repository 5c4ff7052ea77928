"""Finished HTML, cleaned: what a page of drift is made of stays, all else goes.

Texts of files are escaped where they are written; this is the second wall, and the policy in the page is the third: a
browser that reads it runs no script and loads nothing that does not lie beside the page.
"""

from __future__ import annotations

import re

import nh3

__all__ = ["POLICY", "cleaned"]

#: Content-Security-Policy of every page. ``file:`` stands beside ``'self'``, for a page that is opened from a disk has
#: no origin that could be its own.
POLICY = (
    "default-src 'none'; img-src 'self' file: data:; style-src 'self' file: 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
_TAGS = {
    *("a", "abbr", "article", "aside", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "del"),
    *("details", "div", "dl", "dt", "em", "figcaption", "figure", "footer", "h1", "h2", "h3", "h4", "h5", "h6"),
    *("header", "hr", "i", "img", "kbd", "li", "main", "nav", "ol", "p", "pre", "s", "section", "small", "span"),
    *("strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul", "var"),
}
_ATTRIBUTES = {
    "*": {"aria-describedby", "aria-hidden", "aria-label", "aria-labelledby", "class", "id", "lang", "role", "title"},
    "a": {"href"},
    "col": {"span"},
    "details": {"open"},
    "img": {"alt", "height", "loading", "src", "width"},
    "li": {"value"},
    "ol": {"start"},
    "td": {"colspan", "data-label", "headers", "rowspan"},
    "th": {"colspan", "headers", "rowspan", "scope"},
}
_WITH_CONTENT = {"script", "style", "template", "iframe", "object", "noscript", "svg", "math", "title"}
#: Where an address may lead: a place of the page, or a file beside or below it.
_BESIDE = re.compile(r"(?![/ ])(?!.*\.\./)[^:\\\x00-\x1f]*(#[^\x00-\x1f]*)?")
_LINKED = re.compile(r"https?://[^\x00-\x20]+", re.IGNORECASE)
_PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*")


def cleaned(html: str) -> str:
    """Clean a piece of a page.

    Parameters
    ----------
    html : str
        A fragment: what stands inside ``body``.

    Returns
    -------
    str
        Without scripts, styles, forms, frames, drawings with a language of their own, handlers of events and addresses
        that are fetched from elsewhere; pictures lie in the page or beside it. Links lead to a place of the page, to a
        file beside it, or to a web page, which is opened when somebody follows them.
    """
    return nh3.clean(
        html,
        tags=_TAGS,
        clean_content_tags=_WITH_CONTENT,
        attributes=_ATTRIBUTES,
        attribute_filter=_address,
        url_schemes={"http", "https", "data"},
        link_rel=None,
        strip_comments=True,
    )


def _address(tag: str, attribute: str, value: str) -> str | None:
    """An attribute's value, or nothing where it is an address that leads elsewhere."""
    if attribute not in ("href", "src"):
        return value
    other = _PICTURE if tag == "img" else _LINKED
    return value if _BESIDE.fullmatch(value) or other.fullmatch(value) else None

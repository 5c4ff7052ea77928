"""A probe as JUnit XML: a test case per pair.

Beyond the floor is a failure. Undetermined is an error and not a skipped test: it is no pass, neither here nor in the
exit code. What could not be asked of a server is skipped.
"""

from __future__ import annotations

from xml.etree import ElementTree as tree

from drift.reading.logits.model import Verdict
from drift.reading.probing import wording
from drift.reading.probing.model import Found, Pair
from drift.shown import printable

__all__ = ["junit"]


def _case(suite: tree.Element, pair: Pair) -> None:
    case = tree.SubElement(suite, "testcase", classname=f"drift.probe.{pair.view.value}", name=printable(pair.lane))
    said = printable(" ".join(wording.why(pair)))
    if pair.verdict in (Verdict.BEYOND, Verdict.UNDETERMINED):
        name = "failure" if pair.verdict is Verdict.BEYOND else "error"
        tree.SubElement(case, name, type=pair.verdict.value, message=wording.short(pair)).text = said
    else:
        tree.SubElement(case, "system-out").text = said


def junit(found: Found) -> bytes:
    """Write a probe as JUnit XML, UTF-8."""
    counts = {
        "tests": len(found.pairs) + len(found.probe.left_out),
        "failures": len(found.having(Verdict.BEYOND)),
        "errors": len(found.having(Verdict.UNDETERMINED)),
        "skipped": len(found.probe.left_out),
    }
    known = {name: str(value) for name, value in counts.items()} | {"time": f"{found.probe.seconds:.3f}"}
    root = tree.Element("testsuites", known)
    suite = tree.SubElement(root, "testsuite", known, name="drift.probe")
    properties = tree.SubElement(suite, "properties")
    for name in ("endpoint", "engine", "model", "nonce"):
        tree.SubElement(properties, "property", name=name, value=printable(getattr(found.probe, name)))
    for pair in found.pairs:
        _case(suite, pair)
    for text in found.probe.left_out:
        name, _, reason = printable(text).partition(": ")
        case = tree.SubElement(suite, "testcase", classname="drift.probe", name=name)
        tree.SubElement(case, "skipped", message=reason)
    tree.indent(root)
    return tree.tostring(root, encoding="utf-8", xml_declaration=True)

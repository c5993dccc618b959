"""Say below each reference what of it was read, and where the book cites it.

The fields `read` and `record` of references.bib, and links to the sections and
the claims that cite the entry.
"""

from collections.abc import Iterator

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinxcontrib.bibtex.citation_target import parse_citation_targets

from kltutor import claims, ledger

READ = {
    "text": "Read in the text",
    "code": "Read as code",
    "abstract": "Read: the abstract",
    "not read": "Not read",
}
Link = tuple[str, str]  # what it says, and the page with the anchor


def reading(read: str) -> str:
    """Return a field `read` as a sentence, whose first word says the kind."""
    kind = next(kind for kind in READ if read.startswith(kind))
    return f"{READ[kind]}{read[len(kind) :]}."


def section_of(
    node: nodes.Node, env: BuildEnvironment, docname: str
) -> tuple[str, str]:
    """Return the number and the id of the innermost numbered section."""
    numbers = env.toc_secnumbers.get(docname, {})
    while node := node.parent:
        if isinstance(node, nodes.section) and (
            number := numbers.get(f"#{node['ids'][0]}")
        ):
            return ".".join(map(str, number)), node["ids"][0]
    return "", ""


def places(env: BuildEnvironment) -> dict[str, list[Link]]:
    """Return the sections that cite each key, in order, and then the claims."""
    found: dict[str, list[Link]] = {}
    pages = {ref.docname for ref in env.get_domain("cite").citation_refs}
    for docname in sorted(pages):  # the chapters first, by their digits
        for node in env.get_doctree(docname).findall(pending_xref):
            if node["refdomain"] == "cite":
                number, anchor = section_of(node, env, docname)
                title = number or env.titles[docname].astext()
                for target in parse_citation_targets(node["reftarget"]):
                    links = found.setdefault(target.key, [])
                    if (title, f"{docname}#{anchor}") not in links:
                        links.append((title, f"{docname}#{anchor}"))
    for claim in claims.all_claims():
        page = ledger.page(claim).removesuffix(".html")
        for key in claim.sources:
            found.setdefault(key, []).append(
                (claim.id, f"{page}#{claim.id.lower()}")
            )
    return found


class Verification(SphinxPostTransform):
    """Add the lines to the citations that sphinxcontrib-bibtex has set."""

    default_priority = 6  # after sphinxcontrib-bibtex's own

    def run(self, **kwargs: object) -> None:
        """Take the labels away, too: numbers, where the text has names."""
        domain = self.env.get_domain("cite")
        entries = {found.citation_id: found.entry for found in domain.citations}
        cited = (
            places(self.env) if self.document.next_node(nodes.citation) else {}
        )
        for node in self.document.findall(nodes.citation):
            entry = entries[node["ids"][0]]
            node["ids"].append(f"ref-{entry.key}")  # the other is a count
            for label in list(node.findall(nodes.label)):
                node.remove(label)
            read, record = entry.fields["read"], entry.fields["record"]
            text = f"{reading(read)} Record: {record}."
            node += nodes.paragraph("", text, classes=["verification"])
            where = nodes.paragraph("", "Cited in ", classes=["verification"])
            where += list(self.links(cited.get(entry.key, [])))
            node += where

    def links(self, found: list[Link]) -> Iterator[nodes.Node]:
        """Yield links; if there are none, docstrings of the package cite it."""
        for i, (title, target) in enumerate(found or [("the package", "api")]):
            docname, _, anchor = target.partition("#")
            page = self.app.builder.get_relative_uri(self.env.docname, docname)
            yield nodes.Text(", " if i else "")
            yield nodes.reference(
                "", title, refuri=f"{page}#{anchor}".rstrip("#"), internal=True
            )
        yield nodes.Text(".")


def citing_pages_changed(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Write the page again whenever another page may cite more."""
    return sorted(
        {key.docname for key in env.get_domain("cite").bibliographies}
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_post_transform(Verification)
    app.connect("env-updated", citing_pages_changed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

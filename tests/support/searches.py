"""Searches by class labels, as most tests want them."""

from bct.metrics.relevance import ByClass
from bct.metrics.retrieval import retrieve


def two_sets(query, query_labels, gallery, gallery_labels, metric="cosine", ks=(1, 5)):
    """Queries in a gallery of other items."""
    return retrieve(query, gallery, ByClass(query_labels, gallery_labels), metric, ks)


def leave_one_out(x, labels, gallery=None, metric="cosine", ks=(1, 5)):
    """Every item among all the others, by another model's embeddings if they are given."""
    gallery = x if gallery is None else gallery
    return retrieve(x, gallery, ByClass(labels, labels, leave_one_out=True), metric, ks)

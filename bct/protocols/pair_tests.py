"""Tests on pairs without templates: accuracy, TAR at FAR, the verdict, drift and flips."""

from collections.abc import Mapping

import numpy as np

from bct import markdown
from bct.metrics.bootstrap import bootstrap_tar
from bct.metrics.flips import threshold_drift, verification_flips
from bct.metrics.folds import accuracy, one_sided
from bct.metrics.scores import auc, rate_name, tar_at_far
from bct.protocols.compare import pair_units
from bct.protocols.evidence import unjudged
from bct.protocols.protocol import Protocol
from bct.protocols.roles import Roles, test_name
from bct.protocols.scoring import resolved
from bct.protocols.templates import check_widths
from bct.protocols.verdict import judged
from bct.rows import unit_rows


def pair_tests(
    protocol: Protocol, embeddings: Mapping[str, np.ndarray], roles: Roles, far: float
) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """Test "query / gallery" -> its figures, and -> the cosine of every pair, float32 (P,).

    A pair's first image is the gallery's, its second the query's. Accuracy is insightface's.

    Args:
        embeddings: label -> (N, D), not normalised.
    """
    tests, scores = {}, {}
    first, second, genuine = protocol.pairs
    for query, gallery in roles.tests():
        sides = embeddings[gallery][first], embeddings[query][second]
        check_widths(*sides)
        name = test_name((query, gallery))
        mean, std, xnorm = accuracy(*sides, genuine)
        units = [unit_rows(x) for x in sides]
        scores[name] = (units[0] * units[1]).sum(1)
        tests[name] = {"accuracy": mean, "std": std, "xnorm": xnorm}
        if genuine.any() and not genuine.all():
            point = tar_at_far(scores[name], genuine, (far,))[0]
            tests[name] |= {
                "auc": auc(scores[name], genuine),
                "tar": point.tar,
                "reached_far": point.far,
                "threshold": point.threshold,
            }
    return tests, scores


def table(protocol: Protocol, tests: dict[str, dict], far: float) -> str:
    """A set's Markdown table."""
    titles = [protocol.name, "accuracy", "AUC", f"TAR@{rate_name(far)}", "threshold", "XNorm"]
    rows = []
    for test, figures in tests.items():
        rest = [f"{figures[k]:.4f}" if k in figures else "-" for k in ("auc", "tar", "threshold")]
        cells = [f"{figures['accuracy']:.5f}+-{figures['std']:.5f}", *rest]
        xnorm = figures["xnorm"]
        rows.append([test, *cells, f"{xnorm:.2f}" if 0.01 <= xnorm < 1e6 else f"{xnorm:.2e}"])
    return markdown.table(titles, rows)


def notes(
    protocol: Protocol,
    tests: dict[str, dict],
    scores: Mapping[str, np.ndarray],
    roles: Roles,
    far: float,
) -> list[str]:
    """What the table does not say: what was left out, compatibility, drift and flips, or why there
    is no TAR or no verdict."""
    genuine = protocol.pairs.genuine
    impostors = int((~genuine).sum())
    if impostors in (0, len(genuine)):
        only, missing = ("impostor", "TAR") if impostors else ("genuine", "FAR")
        return [
            *protocol.remarks,
            f"{protocol.name} has {only} pairs only: {missing} is undefined, and the accuracy "
            "is that of a threshold that accepts or rejects everything",
        ]
    lines, measure = list(protocol.remarks), f"FAR {rate_name(far)}"
    if one_sided(genuine):
        lines.append(
            f"most folds of {protocol.name} hold genuine or impostor pairs only, so its accuracy "
            "says little; it is meant for sets that have both by turns"
        )
    if not resolved(genuine, far):
        lines.append(f"{impostors} impostor pairs: {measure} allows no false accept at all")
    no_verdict = unjudged(protocol, far)
    if roles.old is not None and no_verdict:
        lines.append(no_verdict)
    elif roles.old is not None:
        compared = [test_name(test) for test in roles.compared(*roles.new)]
        before, cross = scores[compared[0]], scores[compared[1]]
        *units, over = pair_units(protocol)
        tars = bootstrap_tar([before, cross], *units, genuine, (far,))[:, :, 0]
        tar = [tests[name]["tar"] for name in compared]
        verdict = judged(f"TAR at {measure}", *tar, replicates=tars[:, 1] - tars[:, 0], over=over)
        drift = threshold_drift(before, cross, genuine, (far,))[0]
        flips = verification_flips(before, cross, genuine, far)
        lines += [
            verdict.sentence(),
            f"at the old threshold {drift.old.threshold:.4f} new/old has FAR "
            f"{drift.new.far:.2e} (old/old {drift.old.far:.2e}) and TAR {drift.new.tar:.4f}",
            f"flips at {measure}, each system at its own threshold: genuine pairs lost "
            f"{flips.genuine.negative}, won {flips.genuine.positive}; impostors newly accepted "
            f"{flips.impostor.negative}, newly rejected {flips.impostor.positive}",
        ]
    return lines

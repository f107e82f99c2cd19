"""A sweep's ranking in sentences."""

from collections.abc import Mapping, Sequence

from luthier.evaluation.power import two_digits
from luthier.evaluation.ranking import Ranking
from luthier.evaluation.statistics import PairedVerdict

_NAMED = 4  # candidates that a sentence names
_LEAST_SHOWN_P = 1e-4
_FOLD = 100  # so many times the rows that there are, nobody collects


def describe_ranking(ranking: Ranking, titles: Mapping[str, str]) -> list[str]:
    """Sentences: what comes first and how surely, what seeds do, what the choice does.

    `titles` are the candidates' names as they are said (`trial 4`).
    """
    found = [_order(ranking, titles), _seeds(ranking), _choice(ranking), _needed(ranking)]
    return [line for line in found if line]


def _order(ranking: Ranking, titles: Mapping[str, str]) -> str:
    first = ranking.ranked[0]
    title, others = titles[first.name], len(ranking.ranked) - 1
    score = f"{first.score:.4g}" if ranking.metric is None else f"{100 * first.score:.1f} %"
    if not others:
        return f"The only candidate is {title}, with {score}."
    if ranking.basis == "nothing":
        return (
            f"Of {others + 1} candidates {title} comes first with {score}; with one seed each and "
            "no rows that all have answered, nothing tells how surely."
        )
    found = [said for verdict in _VERDICTS if (said := _against(verdict, ranking, titles))]
    allowing = f"; p-values allow for {ranking.comparisons} comparisons" * (others > 1)
    return f"{_basis(ranking)} {title} {' and '.join(found)}{allowing}."


def _basis(ranking: Ranking) -> str:
    rows = f"On {ranking.rows} rows"
    said = {"rows": rows, "rows and seeds": f"{rows} and over seeds", "seeds": "Over seeds alone"}
    if ranking.rows and ranking.metric != "accuracy":
        return f"By rows right, {said[ranking.basis].replace('On', 'on')},"
    return said[ranking.basis]


_VERDICTS: Mapping[PairedVerdict, str] = {
    "cannot tell": "cannot be told from",
    "worse": "is better than",
    "better": "is worse than",
}


def _against(verdict: PairedVerdict, ranking: Ranking, titles: Mapping[str, str]) -> str:
    found = [one for one in ranking.ranked if one.behind and one.behind.verdict == verdict]
    if not found:
        return ""
    is_all = 1 < len(found) == len(ranking.ranked) - 1 and verdict == "worse"
    names = f"all {len(found)} others" if is_all else _listed([titles[one.name] for one in found])
    p_values = [one.behind.p_value or 0.0 for one in found if one.behind]
    if verdict == "cannot tell":
        p = f"p {min(p_values):.2g}{' or more' * (len(found) > 1 and min(p_values) < 1)}"
    else:
        p = f"p {max(_LEAST_SHOWN_P, *p_values):.2g} at most"
    return f"{_VERDICTS[verdict]} {names} ({p})"


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return f"{', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _seeds(ranking: Ranking) -> str:
    deviation = ranking.seed_deviation
    if deviation is None and ranking.basis == "rows" and len(ranking.ranked) > 1:
        return (
            "With one seed each, models are told apart, not their settings: what another seed "
            "would change is not known."
        )
    if deviation is None:
        return ""
    said = f"{deviation:.2g}" if ranking.metric is None else f"{100 * deviation:.1f} points"
    return f"Seeds alone move the score by {said} (standard deviation)."


def _choice(ranking: Ranking) -> str:
    found = ranking.corrected
    if found is None:
        return ""
    low, high = found.interval
    of = "" if ranking.metric is not None else " of the rows right"
    return (
        f"{100 * found.best:.1f} %{of} is the best of {found.candidates}; allowing for that "
        f"choice {100 * found.expected:.1f} % [{100 * low:.1f}, {100 * high:.1f}] is to be "
        "expected."
    )


def _needed(ranking: Ranking) -> str:
    needed = ranking.rows_needed
    if needed is None:
        return ""
    if needed > _FOLD * ranking.rows:
        return (
            f"More than {_FOLD} times these rows would be needed to tell the first two apart, if "
            "they differ as little as here."
        )
    return (
        f"About {two_digits(needed):,} rows would tell the first two apart, if they differ as "
        "much as here."
    )

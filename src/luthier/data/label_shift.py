"""Whether another split is labelled as train is: swapped, renamed or shuffled labels.

A model of the train rows answers the rows of the split. Where it is sure, it contradicts the
labels hardly more often than it contradicts those of train, out of fold. Another convention shows
as a class whose sure answers are contradicted, a wrong file as all of them.

Calibration (2026-11-23) of `excess`, on validation and test of package_sections and of 23 intents
of a smart home, 1,500 rows or all, 3 draws each: clean -0.01 to 0.02 (0.04 in a trial with fewer
rows), shuffled 0.70 to 0.91, two labels of 20 rows or more swapped 0.28 to 0.86, of 10 to 19 rows
-0.01 to 0.55; 30 % of the split's labels flipped at random 0.15 to 0.27, 20 % 0.09 to 0.17, 10 %
0.01 to 0.07. The limit of 0.1 passes every clean pair; it catches what is shuffled, swapped in
classes of 20 rows or more, or flipped at 30 %.
"""

from collections.abc import Sequence

from luthier.data import classical
from luthier.data.cross_fit import SURER, CrossFit, ranked
from luthier.data.summary import Record
from luthier.gates import Gate, check

MAX_LABEL_SHIFT = 0.1

_FEWEST_SURE_ROWS = 5
_CONFIDENCE = 0.9973  # three standard errors, as the worst of many classes is looked for


class LabelShift(Record):
    """How much more often sure answers contradict the labels of a split than those of train.

    `excess`: the lower bound of the share of `wrong` among `sure` rows, less `train_share`; of the
    worst answer, or of all together (`answer` is None).
    """

    rows: int
    answer: str | None
    wrong: int
    sure: int
    train_share: float
    excess: float


def shift(fit: CrossFit, texts: Sequence[str], labels: Sequence[str], seed: int) -> LabelShift:
    """Compare the labels of a split with those of train. A label that train lacks is wrong.

    A class with fewer than some 10 rows in the split can hide.
    """
    import numpy as np

    positions = classical.within_budget(texts, seed, classical.JUDGED_CHARACTERS)
    number = {name: place for place, name in enumerate(fit.labels)}
    given = np.array([number.get(labels[place], -1) for place in positions], dtype=np.int64)
    answers, ranks = ranked(fit.ask([texts[place] for place in positions]))
    train_answers, train_ranks = ranked(fit.scores)
    answers, given = answers[ranks < SURER], given[ranks < SURER]
    train_given = fit.given[train_ranks < SURER]
    train_answers = train_answers[train_ranks < SURER]
    found = []
    for place, name in ((None, None), *enumerate(fit.labels)):
        here = np.full(len(answers), True) if place is None else answers == place
        there = np.full(len(train_answers), True) if place is None else train_answers == place
        wrong, sure = int((answers != given)[here].sum()), int(here.sum())
        share = (int((train_answers != train_given)[there].sum()) + 1) / (int(there.sum()) + 2)
        found.append(
            LabelShift(
                rows=len(positions),
                answer=name,
                wrong=wrong,
                sure=sure,
                train_share=share,
                excess=_lower_bound(wrong, sure) - share,
            )
        )
    return max(found, key=lambda one: (one.sure >= _FEWEST_SURE_ROWS, one.excess))


def label_shift_gate(found: LabelShift, max_excess: float) -> Gate:
    """Fails when the split clearly contradicts what train teaches."""
    what = "all answers" if found.answer is None else f"the answer {found.answer!r}"
    detail = (
        f"{found.wrong} of {found.sure} rows where a model of train is sure carry another label "
        f"({what}; {found.train_share:.1%} in train): the two splits are labelled differently. "
        "Compare rows of that class in both"
    )
    return check("label-shift", found.excess, "<=", max_excess, detail)


def _lower_bound(wrong: int, sure: int) -> float:
    """Wilson's, three standard errors below; 0 without rows."""
    from scipy.stats import binomtest

    if sure == 0:
        return 0.0
    interval = binomtest(wrong, sure).proportion_ci(_CONFIDENCE, method="wilson")
    return float(interval.low)

"""The ranks of an audit in words."""

from collections.abc import Sequence

from optimizer.evidence.audit import AuditArm, Loss, RankCorrelation


def correlation(told: RankCorrelation, arms: Sequence[AuditArm]) -> str:
    """Return a rank correlation with its interval and what seeds take from it."""
    means = [arm.proxy.mean for arm in arms if arm.proxy is not None]
    text = f"rank correlation {told.value:+.2f} {_two(told.low, told.high)} over {len(means) + 1}"
    text += " arms"
    if told.ceiling is not None:
        text += f", where perfect agreement would come to {told.ceiling:.2f} with so few seeds"
    if told.above is None:
        return text
    good = sum(mean >= 0 for mean in means)
    return f"{text}; {told.above:+.2f} among identity and the {good} that the proxy has above it"


def loss(told: Loss, winner: int, unit: str) -> str:
    """Return by how much others are ahead of the winner; their mean is too large on average."""
    if told.best == winner:
        return (
            f"the winner is the best of these; others are ahead by {told.high:.3f} {unit} at most"
        )
    least = f"{told.low:.3f} to " if told.low > 0 else "at most "
    return f"the best there is ahead of the winner by {least}{told.high:.3f} {unit}"


def _two(low: float, high: float) -> str:
    return f"[{low:+.2f}, {high:+.2f}]"

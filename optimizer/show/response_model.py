"""The response that the search's model expects, over the whole search box."""

import numpy as np

from optimizer.config.study_file import StudyConfig
from optimizer.evidence import surrogate
from optimizer.evidence.surrogate import Array, Table
from optimizer.show.figures_search import Model
from optimizer.snapshot import Snapshot

FEWEST = 5
"""Complete trials below which a model would say more about itself than about them."""
STEPS = {1: 97, 2: 24}
"""Places along each value, by the number of values."""


def of(snapshot: Snapshot) -> Model | None:
    """Return the response's model over one value or two; None for more, or with few trials."""
    config = snapshot.config
    if config.dimensions not in STEPS or len(snapshot.results) < FEWEST:
        return None
    table = Table.of(surrogate.shown(snapshot.results), config)
    cube = places(config)
    mean, spread = surrogate.posterior(table, cube)
    box = config.density
    # The table is without what all trials share; with it, identity is at zero, as it is drawn.
    return Model(box.low + cube * (box.high - box.low), mean - table.mean[0], spread)


def places(config: StudyConfig) -> Array:
    """Return a regular grid in the unit cube, (places, dimensions): middles of tiles for two."""
    steps = STEPS[config.dimensions]
    if config.dimensions == 1:
        return np.linspace(0, 1, steps)[:, None]
    middles = (np.arange(steps) + 0.5) / steps
    return np.stack(np.meshgrid(middles, middles, indexing="ij"), axis=-1).reshape(-1, 2)

"""`luthier cost`: what the cost model reckons with, from the config and what was measured."""

from luthier.costing.known import Assumption, Known
from luthier.costing.reckoning import Costing, reckon

__all__ = ["Assumption", "Costing", "Known", "reckon"]

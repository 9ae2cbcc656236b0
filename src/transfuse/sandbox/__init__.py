"""Containment: a serving process keeps what it needs and gives up the rest. `plan.contain` is the way in."""

from transfuse.sandbox.plan import Contained, Containment, ContainmentError, Part, Report, Source, contain

__all__ = ["Contained", "Containment", "ContainmentError", "Part", "Report", "Source", "contain"]

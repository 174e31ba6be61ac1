"""What sedq raises and warns of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sedq.detection import Event

__all__ = ["CalibrationWarning", "ModelFileError", "SedqWarning", "SoftErrorDetected", "SoftErrorWarning"]


class SoftErrorDetected(RuntimeError):
    """A check found corrupted data that could not, or was not to, be corrected.

    Attributes
    ----------
    events : tuple of Event
        What was found, as a monitor would have recorded it.
    """

    def __init__(self, message: str, events: Sequence[Event] = ()) -> None:
        super().__init__(message)
        self.events = tuple(events)

    def __reduce__(self) -> tuple[type[SoftErrorDetected], tuple[str, tuple[Event, ...]]]:
        return type(self), (str(self), self.events)


class SoftErrorWarning(RuntimeWarning):
    """A check found corrupted data and the result was returned all the same (``on_error="warn"``)."""


class SedqWarning(UserWarning):
    """Something about how sedq is used deserves a second look; no data was corrupted."""


class CalibrationWarning(SedqWarning):
    """A calibration could not be made as asked, or is used outside the conditions that it was made under."""


class ModelFileError(ValueError):
    """A file is not a model that sedq saved, or is not as it was saved."""

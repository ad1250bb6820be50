"""On the path of a run's processes: makes libsndfile die of some files, as damaged ones can.

Python imports a module of this name when it starts.
"""

import ctypes

import soundfile

DEADLY_SAMPLE = 5.0
DEADLY_RATE_HZ = 12_345

_open, _read = soundfile.SoundFile.__init__, soundfile.SoundFile.read


def _die() -> None:
    ctypes.string_at(0)  # a read of address 0: a segmentation fault in this very thread


def _deadly_open(self, *arguments, **named):
    _open(self, *arguments, **named)
    if self.samplerate == DEADLY_RATE_HZ:
        _die()


def _deadly_read(self, *arguments, **named):
    block = _read(self, *arguments, **named)
    if block.size and block.max() == DEADLY_SAMPLE:
        _die()
    return block


soundfile.SoundFile.__init__, soundfile.SoundFile.read = _deadly_open, _deadly_read

"""Frames and packets of one episode inside a video file that may hold many (PyAV).

A frame is found by its time, never by counting: LeRobot keeps an episode's frames at `start` + their own
timestamps. Decoding runs on one thread. Measured at 128x128, H.264, two cores: 12,600 frames/s on one thread,
9,400 on two; who wants more runs more processes. One thread also lets a fork inherit a decoder, since no
thread of it stays behind in the parent.
"""

import os
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from catalog.datasets.pixels import Converter
from catalog.errors import UserError

# Timestamps are float32 and container clocks are coarse; frames are milliseconds apart.
TOLERANCE = 1e-4  # seconds

# A frame this close ahead is read on to, even into the next group of pictures: it costs less than a seek.
_NEAR = 2.5  # frames


@dataclass(frozen=True)
class Clip:
    """The part of a video file that is one episode: where it begins, in seconds, and whose it is."""

    path: Path
    start: float
    episode_index: int

    def missing(self) -> UserError:
        return UserError(
            f"{self.path}: the video of episode {self.episode_index} is not there; expected the file that the "
            "dataset's metadata names; download or copy the dataset again"
        )

    def damaged(self, what: str) -> UserError:
        return UserError(
            f"{self.path}: episode {self.episode_index}: {what}; expected a whole video of the episode; "
            "download or copy the file again, or leave the episode out"
        )


class Videos:
    """The open video files of one process, the least recently used closed first.

    A file is lent to one reader at a time, so an unfinished `frames` and another do not disturb each other.
    A fork or a pickled copy starts with none: two processes must not share a file's position.
    """

    def __init__(self, limit: int = 32) -> None:
        self._limit, self._pid = limit, os.getpid()
        self._idle: OrderedDict[Path, _File] = OrderedDict()

    def __reduce__(self) -> tuple[type["Videos"], tuple[int]]:
        return type(self), (self._limit,)

    def frames(
        self, clip: Clip, timestamps: NDArray[np.float64], frame_index: Sequence[int]
    ) -> Iterator[NDArray[np.uint8]]:
        """RGB [H, W, 3] uint8 at each of `timestamps`: seconds since the episode began, ascending.

        Seeks only where that saves decoding, and never decodes more than one group of pictures for a frame.
        `frame_index` names the frames in errors. Raises UserError for a file that is missing or damaged, and
        for a time that has no frame within 1e-4 s.
        """
        with self._lend(clip) as file:
            for timestamp, frame in zip(timestamps.tolist(), frame_index, strict=True):
                try:
                    image = file.image(clip.start + timestamp)
                except (av.FFmpegError, _AbsentError) as error:
                    raise clip.damaged(f"frame {frame}: {_reason(error)}") from error
                yield image

    def packets(self, clip: Clip, timestamps: NDArray[np.float64]) -> Iterator[bytes]:
        """The encoded packets that show a whole episode, in stored order, not decoded.

        They begin with the key frame that the first frame needs and end with the last packet that shows a
        frame, so they do not depend on what else the file holds. Raises UserError as `frames` does.
        """
        with self._lend(clip) as file:
            try:
                yield from file.packets(clip.start + timestamps)
            except (av.FFmpegError, _AbsentError) as error:
                raise clip.damaged(_reason(error)) from error

    @contextmanager
    def _lend(self, clip: Clip) -> Iterator["_File"]:
        pid = os.getpid()
        if self._pid != pid:
            self._idle, self._pid = OrderedDict(), pid
        file = self._idle.pop(clip.path, None) or _opened(clip)
        try:
            yield file
        except Exception:
            file.close()
            raise
        finally:
            # An unfinished reader may end in a child that inherited it.
            if os.getpid() == pid and not file.closed:
                if clip.path in self._idle:
                    self._idle.pop(clip.path).close()
                self._idle[clip.path] = file
                while len(self._idle) > self._limit:
                    self._idle.popitem(last=False)[1].close()


class _AbsentError(Exception):
    """Why a frame is not there, in words."""


def _reason(error: Exception) -> str:
    return f"it cannot be decoded ({error.strerror})" if isinstance(error, av.FFmpegError) else str(error)


def _opened(clip: Clip) -> "_File":
    try:
        return _File(clip.path)
    except FileNotFoundError as error:
        raise clip.missing() from error
    except (av.FFmpegError, _AbsentError) as error:
        raise clip.damaged(_reason(error)) from error


class _File:
    """One open video and where its decoder stands. Times are seconds since the file began."""

    def __init__(self, path: Path) -> None:
        self._container = av.open(str(path))
        self.closed = False
        if not self._container.streams.video:
            raise _AbsentError("the file holds no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1
        self._tick = float(self._stream.time_base or 0)
        rate = self._stream.average_rate
        if not self._tick or not rate:
            raise _AbsentError("the file's video stream has no clock")
        self._near = _NEAR / float(rate)
        self._index = getattr(self._stream, "index_entries", None)  # PyAV 16 or later
        self._reorder = 0  # ticks from when a key frame is stored to when it is shown
        self._rgb = Converter()
        self._packets: Iterator[av.Packet[VideoStream]] = iter(())
        self._ready: deque[VideoFrame] = deque()
        self._frame: VideoFrame | None = None  # the one decoded last
        self._time = 0.0  # when it is shown

    def close(self) -> None:
        self.closed = True
        self._container.close()

    def image(self, time: float) -> NDArray[np.uint8]:
        """The frame at `time` as RGB [H, W, 3] uint8. Raises _AbsentError or av.FFmpegError."""
        if not self._ahead(time):
            self._seek(time)
        while self._frame is not None and self._time < time - TOLERANCE:
            self._advance()
        if self._frame is None:
            raise _AbsentError(f"no frame at {time:.4f} s of the file, which ends after {self._time:.4f} s")
        if self._time > time + TOLERANCE:
            raise _AbsentError(f"no frame at {time:.4f} s of the file, the next one is at {self._time:.4f} s")
        return self._rgb.frame(self._frame)

    def packets(self, times: NDArray[np.float64]) -> Iterator[bytes]:
        """As `Videos.packets`, for ascending `times`. Raises _AbsentError or av.FFmpegError."""
        self._frame = None
        self._container.seek(self._ticks(times[0]), stream=self._stream)
        unseen = set(range(len(times)))
        held: list[bytes] = []
        for packet in self._container.demux(self._stream):
            if not packet.size or packet.is_corrupt or packet.pts is None:
                break
            time = packet.pts * self._tick
            if packet.is_keyframe and time <= times[0] + TOLERANCE:
                held.clear()
            held.append(bytes(packet))
            place = int(np.searchsorted(times, time - TOLERANCE))
            if place in unseen and times[place] <= time + TOLERANCE:
                unseen.remove(place)
                yield from held
                held.clear()
            if not unseen:
                return
            if packet.dts is not None and packet.dts * self._tick > times[-1] + TOLERANCE:
                break
        first = min(unseen)
        raise _AbsentError(f"frame {first}: no frame at {times[first]:.4f} s of the file")

    def _ahead(self, time: float) -> bool:
        """Whether reading on from here decodes no more than a seek to `time` would."""
        if self._frame is None or time < self._time - TOLERANCE:
            return False
        if time - self._time <= self._near:
            return True
        return self._index is not None and self._group(time) == self._group(self._time)

    def _group(self, time: float) -> int:
        """Which key frame the frame at `time` depends on. The index knows when packets are stored, not shown."""
        assert self._index is not None
        return int(self._index.search_timestamp(self._ticks(time) - self._reorder))

    def _ticks(self, time: float) -> int:
        return int((time + TOLERANCE) / self._tick)

    def _seek(self, time: float) -> None:
        """Decode the key frame that the frame at `time` depends on."""
        # In an open group of pictures the frames shown just before the key frame need the group before it.
        for back in (0.0, self._near, 4 * self._near, 16 * self._near, time):
            self._container.seek(self._ticks(max(time - back, 0.0)), stream=self._stream)
            self._packets = self._container.demux(self._stream)
            self._ready.clear()
            self._advance()
            if self._frame is not None and self._time <= time + TOLERANCE:
                return

    def _advance(self) -> None:
        """Decode one frame; `_frame` is None at the end of the file or where it is cut off."""
        while not self._ready:
            packet = next(self._packets, None)
            if packet is None:
                self._frame = None
                return
            if packet.is_keyframe and packet.pts is not None and packet.dts is not None:
                self._reorder = packet.pts - packet.dts
            if packet.is_corrupt:
                self._packets = iter(())
                self._ready.extend(self._stream.codec_context.decode(None))
            else:
                self._ready.extend(self._stream.codec_context.decode(packet))
        self._frame = self._ready.popleft()
        if self._frame.pts is None:
            raise _AbsentError("the file's frames carry no times")
        self._time = self._frame.pts * self._tick
        if self._frame.is_corrupt:  # some decoders paint over damage instead of failing
            raise _AbsentError(f"the picture at {self._time:.4f} s of the file, which it needs, is damaged")

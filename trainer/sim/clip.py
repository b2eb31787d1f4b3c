"""Images to an h264 video, in memory, so that a full disk is met by one write that can be undone."""

from collections.abc import Iterable
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from numpy.typing import NDArray

FPS = 20  # of demonstrations and of videos to look at; a step is 1/80 s, so they run four times slower than life

# Looking ahead gains nothing with a key frame every other frame, and x264 decides it on memory that it never wrote: of
# pictures of 64 to 96 pixels it made other bytes each time.
PLAIN = "bframes=0:rc-lookahead=0:mbtree=0:weightp=0"


def encode(images: Iterable[NDArray[np.uint8]], crf: int = 23) -> bytes:
    """An mp4 of RGB images [H, W, 3] of one even size, a key frame every other frame, as LeRobot writes them, so that
    reading a single frame is cheap. `crf`: x264's quality, lower is better."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = None
        for image in images:
            if stream is None:
                options = {"crf": str(crf), "g": "2", "x264-params": PLAIN}
                stream = container.add_stream("libx264", rate=FPS, options=options)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = Fraction(1, FPS)
                stream.codec_context.thread_count = 1  # the same bytes on any machine
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        assert stream is not None, "a video of no images"
        container.mux(stream.encode())
    return buffer.getvalue()

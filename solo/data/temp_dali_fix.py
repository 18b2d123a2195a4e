# SPDX-License-Identifier: MIT
"""A DALI iterator whose epochs all begin at the first batch of the reader's epoch.

DALI's own iterator counts the samples of the smallest shard. A reader that pads its shards may
deliver one batch more than that; left in the pipeline, it would become the first batch of the next
epoch and shift every later one. It also leaves an epoch that was broken off where it is, so that a
validation after Lightning's sanity check would start in the middle.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence

from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from nvidia.dali.types import PipelineAPIType
from PIL import Image

from solo.data.datasets.images import ReadError


class TempDALIGenericIterator(DALIGenericIterator):
    """DALIGenericIterator that stays aligned with its reader, whatever the policy.

    Needs a reader with `pad_last_batch=True` (and `reader_name`); with any other it behaves as
    DALI's own iterator.

    Raises:
        ReadError: while iterating: an image is broken.
    """

    def _reader_batches(self) -> int | None:
        """Batches that the reader delivers per epoch, None if it does not pad its shards."""
        if not self._reader_name or not self._last_batch_padded:
            return None
        meta = self._pipes[0].reader_meta(self._reader_name)
        shard = meta["epoch_size_padded"] // meta["number_of_shards"]
        return math.ceil(shard / self.batch_size)

    def _advance_and_check_drop_last(self, dry_run=False, end_iteration=True):
        if self._reader_batches() is None:
            return super()._advance_and_check_drop_last(dry_run, end_iteration)
        counter = self._counter + self.batch_size
        drops = self._last_batch_policy == LastBatchPolicy.DROP
        should_end = drops and counter > self._size
        if not dry_run:
            self._counter = counter
            if should_end and end_iteration:
                self._end_iteration()
        return should_end

    def reset(self):
        """Begin the next epoch of the reader.

        Training (policy DROP) that was broken off goes on where it was, since reading the rest of a
        large dataset only to throw it away could take hours. Validation is read to its end.
        """
        batches = self._reader_batches()
        drops = self._last_batch_policy == LastBatchPolicy.DROP
        complete = self._counter + (self.batch_size if drops else 0) > self._size
        if batches is not None and (complete or not drops):
            self._first_batch = None
            while self._counter < batches * self.batch_size:
                self._discard_batch()
            self._counter = max(self._counter, self._size)
        super().reset()

    def _discard_batch(self) -> None:
        for pipe in self._pipes:
            with pipe._check_api_type_scope(PipelineAPIType.ITERATOR):
                pipe.share_outputs()
        self._schedule_runs()
        self._counter += self.batch_size

    def _get_outputs(self):
        try:
            return super()._get_outputs()
        except RuntimeError as error:
            if "nvidia.dali.fn.readers" not in str(error) and "fn.decoders" not in str(error):
                raise
            paths = [path for pipe in self._pipes for path in getattr(pipe, "image_paths", ())]
            raise read_error(error, paths) from error


def read_error(error: RuntimeError, paths: Sequence[str] = (), seconds: float = 60.0) -> ReadError:
    """DALI's error as one line that names the broken file.

    Args:
        error: what a DALI pipeline raised.
        paths: all files of the pipeline, searched for the broken one if DALI does not say.
        seconds: how long to search.
    """
    reason = str(error).split("encountered:")[-1].strip().split("\n")[0]
    named = re.search(r"(?:sample #\d+ :|failed:) (.+)$", reason)
    path = named.group(1) if named else _first_broken(paths, time.monotonic() + seconds)
    if path is None:
        return ReadError(f"DALI could not read an image: {reason}.")
    reason = reason.replace(path, "").rstrip(" :")
    return ReadError(f"Cannot read image '{path}': {reason}. Replace or remove the file.")


def _first_broken(paths: Sequence[str], deadline: float) -> str | None:
    """The first file whose header is no image."""
    for path in paths:
        try:
            with Image.open(path):
                pass
        except (OSError, SyntaxError, ValueError):
            return path
        if time.monotonic() > deadline:
            return None
    return None

"""Data sets that TFDS has prepared on this machine, read by name."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_jax.config.errors import UserError
from gpt_jax.data.files import Document
from gpt_jax.data.progress import Report
from gpt_jax.data.stored import read_examples

HELD_OUT_SPLITS = ("validation", "valid", "dev", "test")


@dataclass(frozen=True)
class PreparedDataset:
    """`name`, `name:version`, `name/config` or `name/config:version`, in `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Its `train` split is trained on; its `validation` (or `valid`, `dev`, `test`) split is held out, and where it has
    none, examples chosen by a hash of their number are.

    Raises:
      ValueError: it is not there, is not stored as array_record, or has no text feature or several of which none is
      called "text".
    """

    name: str

    def state(self) -> Any:
        directory = self._builder().data_path
        files = sorted((file.name, file.stat().length) for file in directory.iterdir())
        info = hashlib.sha256((directory / "dataset_info.json").read_bytes()).hexdigest()
        return [str(directory), info, files]

    def characters(self) -> int | None:
        return None

    def prepare(self, folder: Path, report: Report) -> None:
        self._feature()  # It is prepared already; say now what is wrong with it.

    def read(self, folder: Path) -> Iterator[tuple[Document, bool | None]]:
        builder, feature = self._builder(), self._feature()
        held_out = next((split for split in HELD_OUT_SPLITS if split in builder.info.splits), None)
        for split in ("train",) if held_out is None else ("train", held_out):
            for number, example in enumerate(read_examples(Path(builder.data_path), split)):
                side = None if held_out is None else split == held_out
                if example[feature]:
                    yield Document(f"{split}/{number}", example[feature].decode()), side

    def _feature(self) -> str:
        """The name of the text feature."""
        import tensorflow_datasets as tfds

        info = self._builder().info
        if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            stored = "an unknown format" if info.file_format is None else info.file_format.value
            raise UserError(
                f"The data set {self.name} is stored as {stored}, which TensorFlow alone reads; prepare it again with "
                "file_format='array_record'."
            )
        if "train" not in info.splits:
            raise UserError(
                f"The data set {self.name} has no train split, only {', '.join(info.splits)}; use another one."
            )
        features = info.features if isinstance(info.features, tfds.features.FeaturesDict) else {}
        texts = sorted(name for name, feature in features.items() if isinstance(feature, tfds.features.Text))
        if "text" not in texts and len(texts) != 1:
            raise UserError(
                f'The data set {self.name} needs one text feature, or one called "text"; its text features are: '
                f"{', '.join(texts) or 'none'}."
            )
        return "text" if "text" in texts else texts[0]

    def _builder(self) -> Any:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder

        folder = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        try:
            return read_only_builder.builder_from_files(self.name, data_dir=str(folder))
        except (tfds.core.DatasetNotFoundError, ValueError):
            raise UserError(
                f'The corpus "{self.name}" is neither "python", "tiny_shakespeare" nor a TFDS data set in {folder}: '
                "correct data.corpus, or give data.path=FILE."
            ) from None

"""Data sets that TFDS has already prepared on this machine, by name."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_jax.config.errors import UserError
from gpt_jax.config.foreign import read_bytes
from gpt_jax.data.files import Document
from gpt_jax.data.progress import Advance
from gpt_jax.data.stored import damage_of, read_examples

HELD_OUT_SPLITS = ("validation", "valid", "dev", "test")


@dataclass(frozen=True)
class PreparedDataset:
    """A data set in `$TFDS_DATA_DIR` or `~/tensorflow_datasets`; each example is a document.

    The `train` split is used for training. The first of the splits `validation`, `valid`, `dev` and `test` that exists
    is held out; without any, a hash of each example's number decides whether it is held out. The text is the feature
    called "text", or the only text feature.

    Its files are known by their sizes and times of change; when one changes, the text is read and hashed again, and
    the checksums that array_record stores are compared.

    The methods raise UserError if the data set does not exist, is not stored as array_record, or has no train split or
    no unambiguous text feature.

    Attributes:
      name: `name`, `name:version`, `name/config` or `name/config:version`.
    """

    name: str

    def fingerprint(self) -> Any:
        directory = self._builder().data_path
        files = sorted((file.name, *_state(file)) for file in directory.iterdir())
        info = hashlib.sha256(read_bytes(directory / "dataset_info.json")).hexdigest()
        return [str(directory), info, files]

    def characters(self) -> int | None:
        return None

    def prepare(self, folder: Path, advance: Advance) -> None:
        self._feature()  # TFDS has prepared the data set already; only check it.

    def read(self, folder: Path) -> Iterator[tuple[Document, bool | None]]:
        builder, feature = self._builder(), self._feature()
        held_out = next((split for split in HELD_OUT_SPLITS if split in builder.info.splits), None)
        for split in ("train",) if held_out is None else ("train", held_out):
            for number, example in enumerate(read_examples(Path(builder.data_path), split)):
                side = None if held_out is None else split == held_out
                if example[feature]:
                    yield Document(f"{split}/{number}", example[feature].decode()), side

    def _feature(self) -> str:
        """Checks the data set and returns the name of its text feature."""
        import tensorflow_datasets as tfds

        info = self._builder().info
        if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            stored = "an unknown format" if info.file_format is None else info.file_format.value
            raise UserError(
                f"the data set {self.name} is stored as {stored}, which only TensorFlow can read: prepare it again "
                "with file_format='array_record'"
            )
        if "train" not in info.splits:
            raise UserError(
                f"the data set {self.name} has no train split, only {', '.join(info.splits)}: use another one"
            )
        features = info.features if isinstance(info.features, tfds.features.FeaturesDict) else {}
        texts = sorted(name for name, feature in features.items() if isinstance(feature, tfds.features.Text))
        if "text" not in texts and len(texts) != 1:
            raise UserError(
                f"the data set {self.name} has the text features {', '.join(texts) or '(none)'}: use one that has a "
                'single text feature, or one called "text"'
            )
        return "text" if "text" in texts else texts[0]

    def _builder(self) -> Any:
        from tensorflow_datasets.core import read_only_builder, registered

        folder = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        if not os.path.isdir(folder / self.name.split(":")[0].split("/")[0]):
            raise UserError(self._unknown(folder))
        with damage_of(f"{self.name} in {folder}"):
            try:
                return read_only_builder.builder_from_files(self.name, data_dir=str(folder))
            except registered.DatasetNotFoundError:
                raise UserError(self._unknown(folder)) from None

    def _unknown(self, folder: Path) -> str:
        return (
            f'the corpus "{self.name}" is neither "python", "tiny_shakespeare" nor a TFDS data set in {folder}: '
            "correct data.corpus, or give data.path=FILE"
        )


def _state(file: Any) -> tuple[int, int]:
    """The size (bytes) and the time of change (ns) of a file."""
    state = os.stat(file)
    return state.st_size, state.st_mtime_ns

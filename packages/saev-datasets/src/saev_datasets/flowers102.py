"""Oxford 102 Flowers, from its image folder and the two lists next to it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from saev_core import Archive
from saev_core.errors import DatasetError
from saev_datasets.files import FileDataset, FolderConfig, unpacked

# The lists contain only numbers; these are the names in the publication, in its order.
_NAMES = """
pink primrose; hard-leaved pocket orchid; canterbury bells; sweet pea; english marigold; tiger lily; moon orchid; bird of
paradise; monkshood; globe thistle; snapdragon; colt's foot; king protea; spear thistle; yellow iris; globe-flower; purple
coneflower; peruvian lily; balloon flower; giant white arum lily; fire lily; pincushion flower; fritillary; red ginger; grape
hyacinth; corn poppy; prince of wales feathers; stemless gentian; artichoke; sweet william; carnation; garden phlox; love in the
mist; mexican aster; alpine sea holly; ruby-lipped cattleya; cape flower; great masterwort; siam tulip; lenten rose; barbeton
daisy; daffodil; sword lily; poinsettia; bolero deep blue; wallflower; marigold; buttercup; oxeye daisy; common dandelion;
petunia; wild pansy; primula; sunflower; pelargonium; bishop of llandaff; gaura; geranium; orange dahlia; pink-yellow dahlia;
cautleya spicata; japanese anemone; black-eyed susan; silverbush; californian poppy; osteospermum; spring crocus; bearded iris;
windflower; tree poppy; gazania; azalea; water lily; rose; thorn apple; morning glory; passion flower; lotus; toad lily;
anthurium; frangipani; clematis; hibiscus; columbine; desert-rose; tree mallow; magnolia; cyclamen; watercress; canna lily;
hippeastrum; bee balm; ball moss; foxglove; bougainvillea; camellia; mallow; mexican petunia; bromelia; blanket flower; trumpet
creeper; blackberry lily
"""
_PLACE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
_LISTS = {"train": ("trnid",), "validation": ("valid",), "test": ("tstid",), "all": ("trnid", "valid", "tstid")}


class Flowers102Config(FolderConfig):
    split: Literal["train", "validation", "test", "all"] = "train"
    """1,020 training images, 1,020 validation images, 6,149 test images, or all."""


class Flowers102(FileDataset):
    """`jpg/image_00001.jpg` and so on, ordered by file number, with `imagelabels.mat` and `setid.mat`."""

    Config = Flowers102Config
    sources = (
        Archive(f"{_PLACE}/102flowers.tgz", "md5:52808999861908f626f3c1f4e79d11fa", size=344_862_509),
        Archive(f"{_PLACE}/imagelabels.mat", "md5:e0620be6f572b9609742df49c70aed4d", size=502),
        Archive(f"{_PLACE}/setid.mat", "md5:a5357ecc9cb78c4bef273ce3793fc85c", size=14_989),
    )
    whole: ClassVar = {"split": "all"}

    def __init__(self, cfg: Flowers102Config) -> None:
        root = unpacked(cfg.root, "flowers102", "jpg", "flowers-102", "102flowers", archive="102flowers.tgz")
        labels = _numbers(root / "imagelabels.mat", "labels")
        ids = np.sort(np.concatenate([_numbers(root / "setid.mat", key) for key in _LISTS[cfg.split]]))
        if len(ids) and (ids.min() < 1 or ids.max() > len(labels) or labels.min() < 1 or labels.max() > 102):
            raise DatasetError(f"{root}: setid.mat and imagelabels.mat do not match; download both again.")
        files = [f"image_{number:05d}.jpg" for number in ids]
        classes = [name.strip() for name in _NAMES.replace("\n", " ").split(";")]
        super().__init__(root / "jpg", files, [int(labels[number - 1]) - 1 for number in ids], classes)


def _numbers(file: Path, key: str) -> np.ndarray:
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise DatasetError('flowers102 needs scipy; pip install "saev-datasets[flowers102]".') from error
    try:
        # Only numeric matrices; loadmat runs no code from the file.
        return np.asarray(loadmat(file, variable_names=[key])[key], dtype=np.int64).ravel()
    except KeyError as error:
        raise DatasetError(f"{file} has no {key!r}; download it again.") from error
    except (OSError, MatReadError, ValueError, TypeError, NotImplementedError) as error:
        raise DatasetError(f"{file} cannot be read ({error}); download it again.") from error

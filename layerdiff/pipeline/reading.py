"""Detections as people have them, read into one form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError
from layerdiff.pipeline.boxes import BoxFormat, corners
from layerdiff.pipeline.found import NOTHING, Detections
from layerdiff.pipeline.heads import decoded, heads_of
from layerdiff.pipeline.nms import NmsSettings, detect

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from layerdiff.pipeline.heads import Head

    Array = NDArray[Any]

BOXES = ("boxes", "bboxes", "bbox", "xyxy", "detection_boxes")
SCORES = ("scores", "confidences", "confidence", "conf", "score", "detection_scores")
CLASSES = ("classes", "labels", "class_ids", "class_id", "category_ids", "category_id", "cls", "class", "label",
           "detection_classes")  # fmt: skip
FORMS = (
    "give an array (n, 6) of x1, y1, x2, y2, score, class; a dict or an object with boxes, scores and classes; a COCO "
    ".json; YOLO .txt files; a raw head; or a list with one of those per image"
)
# Files of YOLO's text format hold shares of the image's width and height.
UNIT = (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Side:
    """What one side found, image by image, and the heads it was made of where the source was raw."""

    images: tuple[Detections, ...]
    heads: tuple[Head, ...] | None = None

    @property
    def count(self) -> int:
        """How many boxes there are in all images."""
        return sum(len(image) for image in self.images)


def read_side(source: Any, where: str) -> Side:
    """One side of a comparison.

    Raises
    ------
    InputError
        Not detections in any form that is known.

    """
    source = first_output(_numbers(source))
    if isinstance(source, (str, Path)):
        return _file(Path(source), where)
    if isinstance(source, np.ndarray):
        return _array(source, where)
    if isinstance(source, Mapping):
        return _mapping(source, where)
    if _maps(source):
        return _raw(read_heads(source, where))
    if isinstance(source, tuple) and len(source) == 3 and np.ndim(_numbers(source[1])) == 1:
        return Side((_made(source[0], source[1], source[2], where),))
    if isinstance(source, Sequence):
        return _several(source, where)
    return _object(source, where)


def read_heads(source: Any, where: str) -> tuple[Head, ...]:
    """The heads of a raw output: an array, a path, or a list of per-scale logits, one head per image."""
    source = first_output(_numbers(source))
    if isinstance(source, (str, Path)):
        source = _arrays(Path(source), where)
    if isinstance(source, Mapping):
        source = max((np.asarray(_numbers(v)) for v in source.values()), key=np.size)
    if _maps(source):
        maps = [np.asarray(_numbers(one)) for one in source]
        return tuple(heads_of(decoded(maps, where), where))
    if isinstance(source, Sequence):
        return tuple(head for number, one in enumerate(source) for head in read_heads(one, f"{where}[{number}]"))
    array = np.asarray(source)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{where}: a raw head holds numbers, got {_kind(source)}")
    return tuple(heads_of(array, where))


def in_pixels(side: Side, size: Any, where: str) -> Side:
    """The side with the sizes of its images, and with boxes in pixels where it is known that they are shares."""
    if size is None:
        return side
    return Side(tuple(_sized(image, size, where) for image in side.images), side.heads)


def _sized(image: Detections, size: Any, where: str) -> Detections:
    given = size.get(image.name) if isinstance(size, Mapping) else size
    if given is None:
        raise InputError(f"image_size: no size for image {image.name!r} of {where}; give (width, height) for each name")
    numbers = np.asarray(given, np.float64).reshape(-1)
    if numbers.size not in (1, 2) or not np.all(numbers > 0):
        raise InputError(f"image_size: wanted (width, height) in pixels, or one number, got {given!r}")
    width, height = (float(n) for n in np.broadcast_to(numbers, 2))
    scale = np.array([width, height, width, height]) if image.size == UNIT else 1.0
    return replace(image, boxes=image.boxes * scale, size=(width, height))


def _numbers(value: Any) -> Any:
    """A tensor of any framework as an array; anything else as it is."""
    if isinstance(value, np.ndarray) or not hasattr(value, "detach"):
        return value
    return value.detach().cpu().numpy()


def first_output(source: Any) -> Any:
    """The decoded head where a YOLO model gave it with its logits, as it does in eval mode; anything else as it is."""
    if not isinstance(source, (tuple, list)) or len(source) != 2 or isinstance(source[1], (str, Path)):
        return source
    first = getattr(source[0], "shape", ())
    behind = isinstance(source[1], Mapping) or _maps(source[1])
    return _numbers(source[0]) if len(first) == 3 and behind else source


def _kind(value: Any) -> str:
    return f"{value.dtype} array of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _maps(source: Any) -> bool:
    """Whether this is a list of logits, one map per scale."""
    if not isinstance(source, (list, tuple)) or len(source) < 2:
        return False
    return all(hasattr(one, "shape") and len(one.shape) in (4, 5) for one in source)


def _raw(heads: tuple[Head, ...]) -> Side:
    """Both sides of raw heads get YOLOv5's settings for detection."""
    return Side(tuple(detect(head, NmsSettings()) for head in heads), heads)


def _array(array: Array, where: str) -> Side:
    if array.dtype.kind not in "fiu":
        raise InputError(f"{where}: detections are numbers, got {_kind(array)}; {FORMS}")
    if array.size == 0:
        return Side((NOTHING,) * (array.shape[0] if array.ndim == 3 else 1))
    if array.ndim == 2 and array.shape[1] in (5, 6):
        return Side((_rows(array),))
    if array.ndim == 2 and array.shape[1] == 7 and _whole(array[:, 0]) and _whole(array[:, 5]):
        return Side(
            tuple(_rows(array[array[:, 0] == image][:, [1, 2, 3, 4, 6, 5]]) for image in np.unique(array[:, 0]))
        )
    if array.ndim == 3 and array.shape[2] == 6 and _whole(array[..., 5]) and array[..., 5].max() != array[..., 4].max():
        # An end-to-end model pads with rows of zeros.
        return Side(tuple(_rows(rows[~np.all(rows == 0, 1)]) for rows in array))
    return _raw(read_heads(array, where))


def _whole(column: Array) -> bool:
    return bool(np.all(column == np.round(column)))


def _rows(rows: Array) -> Detections:
    wide = rows.astype(np.float64)
    kinds = wide[:, 5] if rows.shape[1] == 6 else np.zeros(len(wide))
    return Detections(wide[:, :4], wide[:, 4], _classes(kinds))


def _classes(kinds: Any) -> Array:
    array = np.asarray(_numbers(kinds)).reshape(-1)
    if array.dtype.kind in "US":
        return array.astype(str)
    if array.dtype.kind == "O":
        return np.array([str(kind) for kind in array])
    return np.asarray(np.where(np.isfinite(array), array, -1)).astype(np.int64)


def _made(  # noqa: PLR0913  the parts of detections
    boxes: Any, scores: Any, classes: Any, where: str, *, name: str = "", written: BoxFormat = BoxFormat.XYXY
) -> Detections:
    """Detections from their parts; a part that is not there is 1 (scores) or 0 (classes)."""
    array = np.asarray(_numbers(boxes))
    array = array.reshape(0, 4) if array.size == 0 else array
    array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"{where}: boxes are numbers (n, 4), got {_kind(array)}; {FORMS}")
    count = len(array)
    numbers = np.ones(count) if scores is None else np.asarray(_numbers(scores), np.float64).reshape(-1)
    kinds = np.zeros(count, np.int64) if classes is None else _classes(classes)
    if not len(numbers) == len(kinds) == count:
        raise InputError(
            f"{where}: {count} boxes, {len(numbers)} scores and {len(kinds)} classes; give one of each per box"
        )
    return Detections(corners(array, written), numbers, kinds, name)


def _pick(source: Any, names: Sequence[str]) -> Any:
    if isinstance(source, Mapping):
        return next((source[name] for name in names if source.get(name) is not None), None)
    return next((found for name in names if (found := getattr(source, name, None)) is not None), None)


def _mapping(source: Mapping[Any, Any], where: str) -> Side:
    if "annotations" in source:
        return _coco(source["annotations"], source.get("images", ()), where)
    boxes = _pick(source, BOXES)
    if boxes is not None:
        name = str(source.get("image_id", source.get("name", "")))
        return Side((_made(boxes, _pick(source, SCORES), _pick(source, CLASSES), where, name=name),))
    if source and all(not np.isscalar(_numbers(value)) for value in source.values()):
        sides = {str(name): read_side(value, f"{where}[{name!r}]") for name, value in source.items()}
        if all(len(side.images) == 1 for side in sides.values()):
            return Side(tuple(replace(side.images[0], name=name) for name, side in sides.items()))
    raise InputError(f"{where}: a dict with {', '.join(map(str, source)) or 'nothing'} has no boxes; {FORMS}")


def _several(source: Sequence[Any], where: str) -> Side:
    if not source:
        return Side((NOTHING,))
    if all(isinstance(one, Mapping) and "bbox" in one for one in source):
        return _coco(source, (), where)
    if all(hasattr(one, "box") for one in source):  # one record per box
        return Side((_records(source, where),))
    if all(isinstance(one, (list, tuple)) and one and np.isscalar(one[0]) for one in source):  # rows as lists
        return _array(np.asarray(source), where)
    sides = [read_side(one, f"{where}[{number}]") for number, one in enumerate(source)]
    heads = [side.heads for side in sides]
    raw = None if any(h is None for h in heads) else tuple(head for h in heads for head in h or ())
    return Side(tuple(image for side in sides for image in side.images), raw)


def _records(source: Iterable[Any], where: str) -> Detections:
    """One object per box, with box, score and class under one of their usual names."""
    every = list(source)
    boxes = [np.asarray(_numbers(one.box), np.float64) for one in every]
    parts = [[_pick(one, names) for one in every] for names in (SCORES, (*CLASSES, "kind", "name"))]
    scores, kinds = (None if any(p is None for p in part) else part for part in parts)
    return _made(np.stack(boxes), scores, kinds, where)


def _object(source: Any, where: str) -> Side:
    """Results of a framework: ultralytics (boxes.xyxy, .conf, .cls), supervision, a DataFrame of YOLOv5."""
    columns = getattr(source, "columns", None)
    if columns is not None and {"xmin", "ymin", "xmax", "ymax"} <= set(columns):
        boxes = np.stack([np.asarray(source[c], np.float64) for c in ("xmin", "ymin", "xmax", "ymax")], 1)
        return Side((_made(boxes, _pick(source, SCORES), _pick(source, CLASSES), where),))
    inner = getattr(source, "boxes", None)
    holder = inner if inner is not None and hasattr(inner, "xyxy") else source
    boxes = _pick(holder, ("xyxy", *BOXES))
    if boxes is None:
        raise InputError(f"{where}: a {type(source).__name__} is not detections; {FORMS}")
    if isinstance(boxes, (list, tuple)):  # YOLOv5's results: one array of rows per image
        return _several(boxes, where)
    return Side((_made(boxes, _pick(holder, SCORES), _pick(holder, CLASSES), where),))


def _coco(rows: Any, images: Any, where: str) -> Side:
    """COCO results or annotations: boxes are left, top, width, height."""
    try:
        sizes = {str(i["id"]): (float(i["width"]), float(i["height"])) for i in images if "width" in i}
        names = dict.fromkeys([*(str(i["id"]) for i in images), *(str(r.get("image_id", "")) for r in rows)])
        by_image: dict[str, list[Any]] = {name: [] for name in names}
        for row in rows:
            by_image[str(row.get("image_id", ""))].append(row)
        found = [
            _made(
                [row["bbox"] for row in mine],
                [float(row.get("score", 1.0)) for row in mine],
                [row.get("category_id", 0) for row in mine],
                where,
                name=name,
                written=BoxFormat.LTWH,
            )
            for name, mine in by_image.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: not COCO detections ({type(error).__name__}: {error}); each needs image_id, category_id, "
            "bbox (left, top, width, height) and score"
        ) from error
    return Side(tuple(replace(one, size=sizes.get(one.name)) for one in found) or (NOTHING,))


def _file(path: Path, where: str) -> Side:
    label = f"{where} ({path})"
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            raise InputError(f"{label}: the folder has no .txt files of detections")
        return Side(tuple(_text(file, label) for file in files))
    if not path.is_file():
        raise InputError(f"{label}: no such file; {FORMS}")
    if path.suffix == ".txt":
        return Side((replace(_text(path, label), name=""),))
    if path.suffix in (".npy", ".npz"):
        return read_side(_arrays(path, label), label)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{label}: neither .json, .txt, .npy nor .npz ({error}); {FORMS}") from error
    return read_side(content, label)


def _arrays(path: Path, where: str) -> Any:
    """What an .npy or .npz file holds."""
    if not path.is_file():
        raise InputError(f"{where}: no such file as {path}; give an .npy or .npz file")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{where}: {path} is not an .npy or .npz file of plain arrays ({error})") from error


def _text(path: Path, where: str) -> Detections:
    """One file of YOLO's text format: class, centre, width and height as shares, confidence if there is one."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = [float(word) for word in line.split()]
        except ValueError as error:
            raise InputError(f"{where}: {path.name} line {number}: not numbers ({error})") from error
        if len(row) not in (5, 6):
            raise InputError(
                f"{where}: {path.name} line {number}: wanted class, x, y, w, h and perhaps a confidence, "
                f"got {len(row)} numbers"
            )
        rows.append([*row, 1.0][:6])
    array = np.asarray(rows, np.float64).reshape(-1, 6)
    boxes = corners(array[:, 1:5], BoxFormat.CXCYWH)
    return Detections(boxes, array[:, 5], _classes(array[:, 0]), path.stem, UNIT)

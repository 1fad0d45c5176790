"""Components of a volume read in slabs are those of the volume in memory."""

import numpy as np
import pytest
from scipy import ndimage

from particles import components


@pytest.mark.parametrize("depth", [1, 2, 7, 100])
def test_components_of_slabs_are_those_of_the_volume(blobs, depth, monkeypatch):
    monkeypatch.setattr(components, "SLAB_VOXELS", depth * 50 * 60)
    result = components.find_components(iter(blobs), blobs.shape)
    labels, count = ndimage.label(blobs, np.ones((3, 3, 3)))
    assert len(result.voxels) == count
    boxes = ndimage.find_objects(labels)
    for i in range(count):
        label = labels[tuple(result.inside[i])]
        assert label > 0
        assert result.voxels[i] == np.count_nonzero(labels == label)
        assert [(s.start, s.stop) for s in boxes[label - 1]] == list(
            zip(result.low[i], result.high[i], strict=True)
        )
    assert len({labels[tuple(place)] for place in result.inside}) == count


def test_neighbours_that_touch_by_a_corner_are_joined(monkeypatch):
    monkeypatch.setattr(components, "SLAB_VOXELS", 1)
    for down in (0, 1, 2):
        for right in (0, 1, 2):
            mask = np.zeros((2, 5, 5), bool)
            mask[0, 1, 1] = mask[1, down, right] = True
            assert len(components.find_components(iter(mask), mask.shape).voxels) == 1
    mask = np.zeros((2, 5, 5), bool)
    mask[0, 1, 1] = mask[1, 3, 1] = True
    assert len(components.find_components(iter(mask), mask.shape).voxels) == 2


def test_parts_fill_the_component_corners_included(blobs):
    labels, _ = ndimage.label(blobs, np.ones((3, 3, 3)))
    for i, box in enumerate(ndimage.find_objects(labels), 1):
        inside = labels[box] == i
        np.testing.assert_array_equal(components.split_touching(inside, (1, 1, 1), 0.1) > 0, inside)

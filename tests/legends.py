"""Where the legends of a figure lie."""

from matplotlib.figure import Figure


def require_clear(figure: Figure) -> None:
    """Legends and titles lie within the figure; no legend covers axes, their labels or another legend."""
    figure.draw_without_rendering()
    assert all(ax.title.get_window_extent().y1 <= figure.bbox.y1 for ax in figure.axes)
    legends = [ax.get_legend() for ax in figure.axes]
    boxes = [legend.get_window_extent() for legend in legends if legend is not None]
    assert len(boxes) == len(figure.axes)
    for i, box in enumerate(boxes):
        for ax in figure.axes:
            labels = [axis.get_tightbbox() for axis in (ax.xaxis, ax.yaxis)]
            assert not any(box.overlaps(part) for part in (ax.get_window_extent(), *labels) if part is not None)
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0

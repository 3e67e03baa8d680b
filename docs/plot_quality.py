#!/usr/bin/env python3
"""Draws docs/results/quality.svg: KL divergence against bits per value, decode path, of results of `tightkv eval -o json`.

    docs/plot_quality.py docs/results/quality/*.json

One panel per model and context that has a q4_0 to compare with; files of the same scored positions share one. Needs matplotlib
(docs/dependencies.md).
"""
import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STOCK = ("q8_0", "q5_0", "q4_0")
MODELS = {
    "smol.gguf": "SmolLM2-135M (head_dim 64)",
    "d128.gguf": "evaluation model (head_dim 128)",
    "smollm2-d128-16L-Q8_0.gguf": "evaluation model (head_dim 128)",
    "gemma.gguf": "Gemma-3-270M (head_dim 256)",
}
KINDS = {  # marker, colour, filled
    "llama.cpp": ("s", "#555555", True),
    "codes alone": ("x", "#c44e52", True),
    "sink, window, mean": ("o", "#4c72b0", True),
    "the same, mean not extended": ("o", "#4c72b0", False),
    "with a profile": ("^", "#55a868", True),
    "a profile, all rows alike": ("^", "#55a868", False),
}
# Where a label may go, in points from its mark; the first place that is free is taken.
PLACES = [(x, y) for y in (3, -8, 9, -14, 15, -20) for x in (5, -5)]


def kind(spec, extended, weighed):
    if spec in STOCK:
        return "llama.cpp"
    if "profile=" in spec:
        return "with a profile" if weighed else "a profile, all rows alike"
    if ":" not in spec:
        return "codes alone"
    return "the same, mean not extended" if "mean=" in spec and not extended else "sink, window, mean"


def label(spec):
    parts = [p for p in spec.split(":") if not p.startswith(("mean=", "profile="))]
    return " ".join(p.replace("sink=", "s").replace("window=", "w") for p in parts)


def panels(files):
    """{(ctx, model, text, chunks, n_tokens): {(spec, kind): row}}; mean=64 was measured under another rule and stays out."""
    found = {}
    for name in files:
        result = json.loads(pathlib.Path(name).read_text())
        for row in result["results"]:
            spec = row.get("spec", row["cache"])
            if row["path"] != "decode" or spec == "f16" or "mean=64" in spec:
                continue
            key = (result["ctx"], MODELS.get(result["model"], result["model"]), result["text"], result["chunks"], row["n_tokens"])
            row["kind"] = kind(spec, result.get("mean_extended") != "no", result.get("rows_weighed") != "no")
            found.setdefault(key, {})[spec, row["kind"]] = row
    order = list(dict.fromkeys(MODELS.values()))
    place = lambda key: (key[0], order.index(key[1]) if key[1] in order else len(order), key)
    return {key: found[key] for key in sorted(found, key=place) if ("q4_0", "llama.cpp") in found[key]}


def annotate(axes, points):
    """Labels that do not cover each other, or a mark; of marks of one specification and colour the lowest has the label."""
    canvas = axes.figure.canvas.get_renderer()
    taken = [matplotlib.transforms.Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in (axes.transData.transform(p) for _, _, p in points)]
    best = {}
    for k, text, point in points:
        color = KINDS[k][1]
        if (color, text) not in best or point[1] < best[color, text][1]:
            best[color, text] = point
    for (color, text), point in sorted(best.items(), key=lambda item: -item[1][1]):
        for at in PLACES:
            note = axes.annotate(text, point, xytext=at, textcoords="offset points", fontsize=6, color=color,
                                 ha="right" if at[0] < 0 else "left")
            box = note.get_window_extent(canvas).expanded(1.1, 1)
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            if at == PLACES[-1] or inside and not any(box.overlaps(t) for t in taken):
                break
            note.remove()
        taken.append(box)


def draw(axes, key, rows):
    ctx, model, _, chunks, n_tokens = key
    per_chunk, scored = n_tokens // chunks, ctx - 1 - ctx // 2
    note = "" if per_chunk == scored else f", {per_chunk} of {scored} positions"
    axes.set_title(f"{model}, context {ctx}{note}", fontsize=9)
    for row in rows.values():
        marker, color, filled = KINDS[row["kind"]]
        axes.errorbar(row["bits_per_value"], row["kld"], yerr=row["kld_se"], fmt=marker, color=color,
                      mfc=color if filled else "none", ms=5, lw=1)
    axes.set_yscale("log")
    axes.set_xlabel("bits per value, exact rows counted, profile not")
    axes.grid(True, which="both", lw=0.3)
    axes.set_xlim(1.2, 9.8)


def main():
    found = panels(sys.argv[1:])
    if not found:
        sys.exit("no decode results with a q4_0 beside them; give the JSON files of docs/results/quality")
    plt.rcParams.update({"svg.hashsalt": "tightkv", "svg.fonttype": "none", "font.size": 8})
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(5 * columns, 4.4 * lines), squeeze=False, sharey="row", layout="constrained")
    for axes in grid.flat[len(found):]:
        axes.set_visible(False)
    for axes, (key, rows) in zip(grid.flat, found.items()):
        draw(axes, key, rows)
    for line in grid:
        line[0].set_ylabel("KL divergence from f16, decode path")
    marks = [plt.Line2D([], [], marker=m, color=c, mfc=c if filled else "none", ls="", label=k) for k, (m, c, filled) in KINDS.items()]
    grid[0][0].legend(handles=marks, fontsize=7)
    figure.draw_without_rendering()  # labels need places in pixels, so the layout must be final
    figure.set_layout_engine("none")
    for axes, rows in zip(grid.flat, found.values()):
        annotate(axes, [(row["kind"], label(spec), (row["bits_per_value"], row["kld"])) for (spec, _), row in rows.items()])
    out = pathlib.Path(__file__).resolve().parent / "results" / "quality.svg"
    figure.savefig(out, metadata={"Date": None})
    return figure


if __name__ == "__main__":
    main()

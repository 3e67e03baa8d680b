#!/usr/bin/env python3
"""Draws docs/results/quality.svg: KL divergence against bits per value, decode path, of results of `tightkv eval -o json`.

    docs/plot_quality.py docs/results/quality/*.json

One panel per model, context and set of scored positions that has a q4_0 to compare with. Needs matplotlib (docs/dependencies.md).
"""
import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STOCK = ("q8_0", "q5_0", "q4_0")
KINDS = {  # marker and colour
    "llama.cpp": ("s", "#555555"),
    "codes alone": ("x", "#c44e52"),
    "sink, window, mean": ("o", "#4c72b0"),
    "with a profile": ("^", "#55a868"),
}
PLACES = {"llama.cpp": (5, 3), "codes alone": (5, 5), "sink, window, mean": (5, -6), "with a profile": (-5, -3)}  # of labels, points


def kind(spec):
    if spec in STOCK:
        return "llama.cpp"
    if "profile=" in spec:
        return "with a profile"
    return "sink, window, mean" if ":" in spec else "codes alone"


def label(spec):
    parts = [p for p in spec.split(":") if not p.startswith(("mean=", "profile="))]
    return " ".join(p.replace("sink=", "s").replace("window=", "w") for p in parts)


def panels(files):
    """{(name, ctx, chunks, n_tokens): {spec: row}}; mean=64 was measured under another rule (docs/quality.md) and stays out."""
    found, title = {}, {}
    for name in files:
        result = json.loads(pathlib.Path(name).read_text())
        for row in result["results"]:
            spec = row.get("spec", row["cache"])
            if row["path"] != "decode" or spec == "f16" or "mean=64" in spec:
                continue
            key = (result["model"], result["ctx"], result["chunks"], row["n_tokens"])
            found.setdefault(key, {})[spec] = row
            if spec == "q4_0":
                title[key] = pathlib.Path(name).stem
    return {(title[key], *key[1:]): rows for key, rows in sorted(found.items()) if "q4_0" in rows}


def draw(axes, key, rows):
    name, ctx, chunks, n_tokens = key
    per_chunk = n_tokens // chunks
    note = "" if per_chunk == ctx - 1 - ctx // 2 else f", first {per_chunk} of {ctx - 1 - ctx // 2} positions"
    axes.set_title(name + note, fontsize=9)
    best = {}
    for spec, row in rows.items():
        k, point = kind(spec), (row["bits_per_value"], row["kld"])
        axes.errorbar(*point, yerr=row["kld_se"], fmt=KINDS[k][0], color=KINDS[k][1], ms=5, lw=1)
        at = (k, label(spec))
        if at not in best or point[1] < best[at][1]:
            best[at] = point
    for (k, text), point in best.items():  # several profiles of one specification: the lowest has the label
        axes.annotate(text, point, xytext=PLACES[k], textcoords="offset points", fontsize=6, color=KINDS[k][1],
                      ha="right" if PLACES[k][0] < 0 else "left")
    axes.set_yscale("log")
    axes.set_xlabel("bits per value, exact rows counted, profile not")
    axes.grid(True, which="both", lw=0.3)
    axes.set_xlim(1.4, 9.8)


def main():
    found = panels(sys.argv[1:])
    if not found:
        sys.exit("no decode results with a q4_0 beside them; give the JSON files of docs/results/quality")
    plt.rcParams.update({"svg.hashsalt": "tightkv", "svg.fonttype": "none", "font.size": 8})
    figure, all_axes = plt.subplots(1, len(found), figsize=(5 * len(found), 4.4), squeeze=False, layout="constrained")
    for axes, (key, rows) in zip(all_axes[0], found.items()):
        draw(axes, key, rows)
    all_axes[0][0].set_ylabel("KL divergence from f16, decode path")
    marks = [plt.Line2D([], [], marker=m, color=c, ls="", label=k) for k, (m, c) in KINDS.items()]
    all_axes[0][0].legend(handles=marks, fontsize=7)
    out = pathlib.Path(__file__).resolve().parent / "results" / "quality.svg"
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()

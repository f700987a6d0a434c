#!/usr/bin/env python3
"""Curves of docs/scaling.md, as SVG, from `lorashard plan --sweep --json`; and from measured.json (measure.py), the
predictions beside the measurements: measured.svg, and the table in docs/scaling.md.

    python3 docs/scaling/plot.py build/lorashard

Nothing but Python's own library is needed. The same program gives the same files."""
import json
import math
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 78, 188, 40, 52
COLOURS = ["#1b6ca8", "#c8553d", "#2e8b57", "#8a5fbf", "#b8860b"]

GPT3 = ["--model", "gpt3-175b", "--set", "lora.targets=[q, v]", "--set", "lora.r=4"]
CLUSTER = ["--cluster", "cluster-configs/h100-16x8.yaml"]


def sweep(program, *arguments):
    command = [program, "plan", *GPT3, *CLUSTER, "--sweep", "8..16384", "--json", *arguments]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)["sweep"]


def escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short(value):
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


class Axis:
    """Values to places on the page."""

    def __init__(self, low, high, begin, end, log):
        self.low, self.high, self.begin, self.end, self.log = low, high, begin, end, log

    def place(self, value):
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)


class Chart:
    def __init__(self, title, x_name, y_name, x, y):
        self.x, self.y, self.lines = x, y, []
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escaped(title)}</text>',
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 12}" text-anchor="middle">'
            f"{escaped(x_name)}</text>",
            f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)" text-anchor="middle">'
            f"{escaped(y_name)}</text>",
        ]

    def ticks(self, xs, ys, y_text=short):
        for value in xs:
            at = self.x.place(value)
            self.parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#e4e4e4"/>')
            self.parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
        for value in ys:
            at = self.y.place(value)
            self.parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e4e4e4"/>')
            text = escaped(y_text(value))
            self.parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')

    def line(self, name, points, style="curve"):
        """`style`: a curve with its points; a band, the same wide and pale, on which others can lie; points alone; or
        dashes, thin and dark, that can be seen on a curve."""
        colour = "#333333" if style == "dashes" else COLOURS[len(self.lines) % len(COLOURS)]
        stroke = {
            "curve": f'stroke="{colour}" stroke-width="2"',
            "band": f'stroke="{colour}" stroke-width="9" stroke-opacity="0.35" stroke-linejoin="round"',
            "dashes": f'stroke="{colour}" stroke-width="1.5" stroke-dasharray="5 7"',
        }.get(style)
        places = [(self.x.place(a), self.y.place(b)) for a, b in points]
        at = TOP + 8 + 20 * len(self.lines)
        edge = WIDTH - RIGHT + 12
        dots = list(places) if style != "dashes" else []
        if stroke:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            self.parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')
            self.parts.append(f'<line x1="{edge}" x2="{edge + 22}" y1="{at}" y2="{at}" {stroke}/>')
        if dots:
            dots.append((edge + 11, at))  # the legend's
        self.parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in dots]
        self.parts.append(f'<text x="{edge + 28}" y="{at + 4}">{escaped(name)}</text>')
        self.lines.append(name)

    def write(self, name):
        with open(os.path.join(HERE, name), "w", encoding="utf-8") as file:
            file.write("\n".join(self.parts + ["</svg>"]) + "\n")


def x_axis(low=8, high=16384):
    return Axis(low, high, LEFT, WIDTH - RIGHT, True)


def y_axis(low, high, log):
    return Axis(low, high, HEIGHT - BOTTOM, TOP, log)


RANKS = [8, 32, 128, 512, 2048, 8192]
WAYS = {"tp": "more of tp alone", "pp": "more of pp alone", "dp": "more of dp alone"}


def throughput(data, title, name, top):
    chart = Chart(title, "GPUs", "tokens a second", x_axis(), y_axis(1e3, top, True))
    chart.ticks(RANKS, [10.0**i for i in range(3, int(math.log10(top)) + 1)])
    best = [(p["ranks"], p["time"]["tokens_per_s"]) for p in data["best"] if p["fits"]]
    ideal = [(n, best[0][1] * n / best[0][0]) for n, _ in best]
    chart.line("best layout", best, "band")
    for way, text in WAYS.items():
        points = [(p["ranks"], p["time"]["tokens_per_s"]) for p in data["ways"][way]["points"]]
        if points:
            chart.line(text, points)
    chart.line("in proportion", ideal, "dashes")
    chart.write(name)


def shares(data, title, name):
    chart = Chart(title, "GPUs", "share of a step", x_axis(), y_axis(0, 1, False))
    chart.ticks(RANKS, [0, 0.2, 0.4, 0.6, 0.8, 1], lambda v: f"{100 * v:.0f} %")
    texts = {"tp": "tp: sums", "pp": "pp: bubble, messages", "dp": "dp: gradients"}
    for way, text in texts.items():
        line = data["ways"][way]
        points = [(p["ranks"], share) for p, share in zip(line["points"], line["shares"])]
        if points:
            chart.line(text, points)
    chart.line(f"{100 * data['threshold']:.0f} %", [(8, data["threshold"]), (16384, data["threshold"])], "dashes")
    chart.write(name)


def measured(rows):
    """Predicted against measured seconds, on the diagonal where they agree."""
    times = [t for row in rows for t in (row["predicted_s"], row["measured_s"])]
    low, high = 0.5 * min(times), 2 * max(times)
    chart = Chart("Steps of small runs: predicted and measured", "measured, s", "predicted, s",
                  Axis(low, high, LEFT, WIDTH - RIGHT, True), y_axis(low, high, True))
    marks = [v for v in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= v <= high]
    chart.ticks(marks, marks, lambda v: f"{v:g}")
    for ranks in sorted({row["ranks"] for row in rows}):
        name = f"{ranks} rank{'s' if ranks > 1 else ''}"
        name += " on fewer cores" if ranks > rows[0]["machine_cores"] else ""
        points = sorted((row["measured_s"], row["predicted_s"]) for row in rows if row["ranks"] == ranks)
        chart.line(name, points, "points")
    chart.line("equal", [(low, low), (high, high)], "dashes")
    chart.write("measured.svg")


def table(data):
    """The measurements as Markdown."""
    lines = ["| ranks | layout | measured step, s (fastest to slowest) | predicted, s | error |",
             "|---|---|---|---|---|"]
    for row in data["rows"]:
        layout = row["layout"]
        text = f"tp {layout['tp']} x pp {layout['pp']} x dp {layout['dp']}"
        text += ", sequence" if layout["sequence"] else ""
        text += f", recompute {layout['recompute']}" if layout["recompute"] != "none" else ""
        more = " (more than cores)" if row["ranks"] > row["machine_cores"] else ""
        lines.append(f"| {row['ranks']}{more} | {text} | {row['measured_s']:.2f} ({row['fastest_s']:.2f} to "
                     f"{row['slowest_s']:.2f}) | {row['predicted_s']:.2f} | {100 * row['error']:+.0f} % |")
    own = [abs(row["error"]) for row in data["rows"] if row["ranks"] <= row["machine_cores"]]
    others = [abs(row["error"]) for row in data["rows"] if row["ranks"] > row["machine_cores"]]
    lines += ["", f"{data['date']}, {data['rows'][0]['machine_cores']} cores, {data['model']}, "
              f"{data['rows_of_a_step']} rows of {data['seq_len']} tokens, f32. "
              f"Load of the machine at the end, over 15 minutes: {data['load']:.1f}.",
              f"Mean error {100 * sum(own) / len(own):.0f} %, largest {100 * max(own):.0f} %"
              + (f"; with more ranks than cores mean {100 * sum(others) / len(others):.0f} %, largest "
                 f"{100 * max(others):.0f} %." if others else ".")]
    lines += ["", "An error below zero: the run was slower than predicted.", "",
              "![predicted and measured](scaling/measured.svg)"]
    return "\n".join(lines)


def put_table(text):
    path = os.path.join(ROOT, "docs", "scaling.md")
    with open(path, encoding="utf-8") as file:
        page = file.read()
    begin, end = "<!-- measured -->\n", "<!-- end -->"
    before, rest = page.split(begin, 1)
    with open(path, "w", encoding="utf-8") as file:
        file.write(before + begin + text + "\n" + end + rest.split(end, 1)[1])


def main():
    program = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "build", "lorashard"))
    if not os.access(program, os.X_OK):
        sys.exit(f"{program}: no such program; build it, or name it: {sys.argv[0]} PROGRAM")
    weak, strong = sweep(program), sweep(program, "--strong")
    throughput(weak, "GPT-3 175B, rows of a step grow with the GPUs", "weak.svg", 1e8)
    throughput(strong, "GPT-3 175B, 256 rows of 2048 tokens a step", "strong.svg", 1e7)
    shares(weak, "Where growing one way stops (rows grow with the GPUs)", "weak-shares.svg")
    shares(strong, "Where growing one way stops (256 rows a step)", "strong-shares.svg")
    path = os.path.join(HERE, "measured.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        measured(data["rows"])
        put_table(table(data))


if __name__ == "__main__":
    main()

"""What is made of figures: tables on a terminal, plots, and docs/performance.md."""

import dataclasses
import html
import json

from harness import ROOT

PAGE = ROOT / "docs/performance.md"
IMAGES = ROOT / "docs/images"
RESULTS = ROOT / "bench/results.json"
NOTES = ROOT / "bench/notes"


@dataclasses.dataclass
class Row:
    """One measurement, and what it is measured against.

    `target` is about the ratio of ours to theirs where there is a `theirs`, and about ours otherwise:
    ("at least" | "at most", number). Without a target the row is there to compare.
    """

    what: str
    ours: float
    unit: str
    against: str = ""
    theirs: float | None = None
    target: tuple | None = None

    @property
    def ratio(self):
        return None if self.theirs is None else self.ours / self.theirs

    @property
    def judged(self):
        return self.ours if self.theirs is None else self.ratio

    @property
    def met(self):
        if self.target is None:
            return None
        kind, bound = self.target
        return self.judged >= bound if kind == "at least" else self.judged <= bound

    def cells(self):
        target = "" if self.target is None else f"{self.target[0]} {self.target[1]:g}"
        against = "" if self.theirs is None else f"{self.against}: {figure(self.theirs)} {self.unit}"
        return [
            self.what,
            f"{figure(self.ours)} {self.unit}".strip(),
            against or self.against,
            "" if self.ratio is None else f"{self.ratio:.2f}",
            target,
            {None: "", True: "yes", False: "**no**"}[self.met],
        ]


HEAD = ["what", "nbd-proxy", "against", "ratio", "target", "met"]


def figure(number):
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def table(rows):
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plot(title, rows):
    """Bars of the judged figures as a share of what was asked for, which is the line at 1."""
    judged = [row for row in rows if row.target is not None]
    left, width, height, top = 330, 360, 22, 34
    scale = 1.5
    total = top + height * len(judged) + 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {total}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="10" y="20" font-weight="bold">{html.escape(title)}</text>',
    ]
    for index, row in enumerate(judged):
        kind, bound = row.target
        share = row.judged / bound if kind == "at least" else bound / max(row.judged, 1e-9)
        y = top + index * height
        length = min(share, scale) / scale * width
        color = "#2b8a5a" if row.met else "#b3522b"
        parts += [
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{html.escape(row.what)}</text>',
            f'<rect x="{left}" y="{y + 3}" width="{length:.1f}" height="{height - 7}" fill="{color}"/>',
            f'<text x="{left + length + 6:.1f}" y="{y + 15}">{share:.2f}</text>',
        ]
    one = left + width / scale
    bottom = top + height * len(judged)
    parts += [
        f'<line x1="{one}" y1="{top}" x2="{one}" y2="{bottom}" stroke="#222" stroke-dasharray="4 3"/>',
        f'<text x="{one}" y="{bottom + 16}" text-anchor="middle">target</text></svg>',
    ]
    return "\n".join(parts) + "\n"


def keep(question, rows, when, where, load):
    """Replaces the kept figures of one question."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[question] = {"when": when, "where": where, "load": load, "rows": [dataclasses.asdict(row) for row in rows]}
    RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def write(questions):
    """Writes the page and its plots from the kept figures and the notes."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    parts = [(NOTES / "head.md").read_text().strip()]
    for name, question in questions.items():
        if name not in kept:
            continue
        run = kept[name]
        rows = [Row(**row) for row in run["rows"]]
        parts.append(f"## {question.TITLE}")
        parts.append(question.__doc__.strip())
        parts.append(table(rows))
        if any(row.target for row in rows):
            image = IMAGES / f"performance-{name}.svg"
            image.write_text(plot(question.TITLE, rows))
            parts.append(f"![{question.TITLE}: what was reached, as a share of the target](images/{image.name})")
        parts.append(f"<sub>{run['when']} · {run['where']} · {run['load']}</sub>")
        notes = NOTES / f"{name}.md"
        if notes.exists():
            parts.append(notes.read_text().strip())
    parts.append((NOTES / "tail.md").read_text().strip())
    PAGE.write_text("\n\n".join(parts) + "\n")

"""The first section: what ran, what stands, where every second went, what failed and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from bioembed_ray.config import mask_secrets
from bioembed_ray.datasets import Dataset
from bioembed_ray.ledger.ledger import Ledger
from bioembed_ray.report import charts
from bioembed_ray.report.frame import Section
from bioembed_ray.report.markup import (
    Column,
    count,
    facts,
    figure,
    name,
    notice,
    seconds,
    table,
    text,
    weights_mark,
)
from bioembed_ray.results import Results
from bioembed_ray.summary import Seconds, dataset_seconds, last_record

PARTS = ("embedded", "padded", "skipped", "failed", "pending")
EXAMPLES = 3
MOST_SITES, MOST_DAYS = 24, 62


def overview(results: Results, ledger: Ledger, datasets: Sequence[Dataset]) -> Section:
    """Return the section.

    Args:
        results: The output.
        ledger: Its ledger.
        datasets: Window vectors that the report is about.
    """
    record = last_record(results.output) or {}
    channels = record.get("job", {}).get("input", {}).get("channels", "mix")
    sums = {one: dataset_seconds(ledger, one, channels) for one in datasets}
    recordings = results.recordings()
    durations = [value or 0.0 for value in _values(recordings, "duration_s")]
    states = Counter(_values(recordings, "status"))
    html = [
        facts(
            (
                ("recordings", _with_small(count(len(recordings)), _listed(states))),
                ("sound", text(seconds(sum(durations)))),
                ("encoders", count(len(datasets))),
                ("windows", count(sum(one.n_rows for one in sums.values()))),
                ("codebooks", count(len(results.codebooks))),
                ("failures", _with_small(count(len(results.failures())), "see below")),
            )
        ),
        "<h3>Encoders</h3>",
        _encoders(results, sums),
        "<h3>Where every second went</h3>",
        _coverage(sums),
        _when_and_where(recordings, durations),
        "<h3>Failures</h3>",
        _failures(results.failures()),
        "<h3>Run</h3>",
        _run(record, results.output),
    ]
    return Section("summary", "Summary", "".join(html))


def _values(rows: pa.Table, column: str) -> list[Any]:
    if column not in rows.column_names:
        return [None] * len(rows)
    found: list[Any] = rows.column(column).to_pylist()
    return found


def _with_small(body: str, small: str) -> str:
    return f"{body}<small>{text(small)}</small>"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count(n)} {state}" for state, n in counts.most_common())


def _encoders(results: Results, sums: dict[Dataset, Seconds]) -> str:
    current = results.current.get("encoders", {})
    rows = []
    for dataset, one in sums.items():
        own = results.windows(dataset.encoder, dataset.version)
        width = own.arrow.schema.field("embedding").type.list_size
        is_current = current.get(dataset.encoder, {}).get("embeddings") == dataset.version
        state = "current" if is_current else '<span class="random">not current</span>'
        rows.append(
            (
                f"<strong>{text(dataset.encoder)}</strong>",
                f"<code>{text(dataset.version)}</code>",
                state,
                weights_mark(own.weights or "not said"),
                count(own.count()),
                count(width),
                text(seconds(one.embedded + one.padded)),
            )
        )
    return table(
        (
            "encoder",
            "version",
            "state",
            "weights",
            Column("windows", True),
            Column("dimensions", True),
            Column("sound in windows", True),
        ),
        rows,
    )


def _coverage(sums: dict[Dataset, Seconds]) -> str:
    rows = []
    for dataset, one in sums.items():
        parts = {part: float(getattr(one, part)) for part in PARTS}
        rows.append(
            (
                f"<strong>{text(dataset.encoder)}</strong><br>"
                + (
                    charts.stacked_bar(parts, "s", 300)
                    or '<span class="quiet">nothing known</span>'
                ),
                *(f"{value:,.3f}" for value in parts.values()),
                f"{one.total:,.3f}",
            )
        )
    caption = (
        "Seconds of input, all channels that were encoded. Padded: heard only in windows filled up "
        "with silence; skipped: in no window."
    )
    columns = (
        Column("encoder"),
        *(Column(f"{part} s", True) for part in PARTS),
        Column("total s", True),
    )
    return charts.key(PARTS) + table(columns, rows) + f'<p class="quiet">{caption}</p>'


def _when_and_where(recordings: pa.Table, durations: Sequence[float]) -> str:
    """Return hours by site and day, the first of either where there are many."""
    sites = [site or "site unknown" for site in _values(recordings, "site")]
    days = [
        "date unknown" if at is None else datetime.fromisoformat(at).strftime("%Y-%m-%d")
        for at in _values(recordings, "recorded_at")
    ]
    by_site = Counter[str]()
    for site, length in zip(sites, durations, strict=True):
        by_site[site] += length  # type: ignore[assignment]
    shown_sites = [site for site, _ in by_site.most_common(MOST_SITES)]
    all_days = sorted(set(days) - {"date unknown"}) + ["date unknown"] * ("date unknown" in days)
    shown_days = all_days[-MOST_DAYS:]
    hours = np.zeros((len(shown_sites), len(shown_days)))
    row = {site: k for k, site in enumerate(shown_sites)}
    place = {day: k for k, day in enumerate(shown_days)}
    for site, day, length in zip(sites, days, durations, strict=True):
        if site in row and day in place:
            hours[row[site], place[day]] += length / 3600
    if not hours.any():
        return ""
    left_out = []
    if len(by_site) > MOST_SITES:
        left_out.append(f"the {MOST_SITES} sites with most sound of {count(len(by_site))}")
    if len(all_days) > MOST_DAYS:
        left_out.append(f"the last {MOST_DAYS} of {count(len(all_days))} days")
    limits = f" Shown: {' and '.join(left_out)}." if left_out else ""
    chart = charts.heat(shown_sites, shown_days, hours, "hours of sound")
    caption = (
        f"Hours of sound by site and day, {hours.sum():,.3g} h in all; the darker the more, "
        f"up to {hours.max():,.3g} h.{limits} Point at a square for its figure."
    )
    return "<h3>When and where</h3>" + figure(f'<div class="scroll">{chart}</div>', text(caption))


def _failures(failures: pa.Table) -> str:
    if not len(failures):
        return notice("None: everything that was read was embedded.", "good")
    reasons = Counter(failures.column("reason").to_pylist())
    rows = failures.to_pylist()
    shown = []
    for reason, n in reasons.most_common():
        own = [row for row in rows if row["reason"] == reason]
        n_recordings = len({row["recording"] for row in own})
        examples = "".join(
            f"<li>{name(row['recording'])}<br>"
            f'<span class="quiet">{text(mask_secrets(str(row.get("detail") or "")))}</span></li>'
            for row in own[:EXAMPLES]
        )
        is_transient = any(row.get("is_transient") for row in own)
        state = "tried again by the next run" if is_transient else "for good"
        many = "failures" if n > 1 else "failure"
        among = "recordings" if n_recordings > 1 else "recording"
        shown.append(
            (
                f'<strong>{text(reason)}</strong><br><span class="quiet">{count(n)} {many} in '
                f"{count(n_recordings)} {among}, {state}</span>",
                f'<ul class="plain">{examples}</ul>',
            )
        )
    return table(("reason", "for example"), shown)


def _run(record: dict[str, Any], output: str) -> str:
    job = record.get("job", {})
    source = job.get("input", {}).get("uri", "not known")
    shown = source if isinstance(source, str) else ", ".join(source[:3])
    packages = record.get("environment", {}).get("packages", {})
    wall, audio = record.get("wall_s") or 0.0, record.get("audio_s") or 0.0
    rate = f", {audio / wall:,.3g} × real time" if wall else ""
    rows = [
        ("input", f"<code>{text(mask_secrets(str(shown)))}</code>"),
        ("output", f"<code>{text(mask_secrets(output))}</code>"),
        ("last run that did something", text(record.get("run", "no record stands"))),
        ("ended", text(record.get("ended", "not known"))),
        ("exit code", text(record.get("exit_code", "not known"))),
        ("it encoded", text(f"{seconds(audio)} of sound in {seconds(wall)}{rate}")),
        (
            "packages",
            text(", ".join(f"{key} {value}" for key, value in packages.items()) or "not known"),
        ),
    ]
    body = "".join(f"<dt>{text(title)}</dt><dd>{value}</dd>" for title, value in rows)
    return f'<dl class="pairs wide">{body}</dl>'

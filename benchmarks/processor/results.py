"""Results of the arms so far, and the report of a run."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

Figures = dict[str, float]


@dataclass(frozen=True)
class Settings:
    """Settings of a run. Two runs are comparable if they are equal."""

    events: int
    faust_events: int
    events_4k: int
    keys: int
    few_keys: int
    partitions: int
    quick: bool

    @property
    def latency_s(self) -> float:
        """Duration of the latency measurements, in seconds."""
        return 8.0 if self.quick else 35.0

    @property
    def takeover_s(self) -> float:
        """Duration of the takeover measurement, in seconds."""
        return 18.0 if self.quick else 24.0


class Results:
    """Results by arm, saved after every arm, so that an interrupted run can be resumed."""

    def __init__(self, path: Path, settings: Settings, *, resume: bool) -> None:
        self._path = path
        self._settings = settings
        self.runs: dict[str, list[Figures]] = {}
        if resume and path.exists():
            saved = json.loads(path.read_text())
            if saved["settings"] == asdict(settings):
                self.runs = saved["runs"]

    def add(self, arm: str, figures: Figures) -> None:
        """Add the figures of one round of an arm, and save all results."""
        self.runs.setdefault(arm, []).append(figures)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps({"settings": asdict(self._settings), "runs": self.runs}, indent=1))
        part.replace(self._path)

    def median(self, arm: str, figure: str) -> float | None:
        """Return the median of a figure over all rounds, or None if the arm did not run."""
        values = [figures[figure] for figures in self.runs.get(arm, ())]
        return statistics.median(values) if values else None

    def _speed(self, arm: str) -> float | None:
        return self.median(arm, "events_per_s")

    def report(self) -> dict[str, Any]:
        """Return the complete report, with None for figures that were not measured."""
        ours, many = self._speed("engine"), self._speed("keys-1m")
        figures = {
            "p50_ms_at_500": self.median("latency", "p50_ms"),
            "p99_ms_at_500": self.median("latency", "p99_ms"),
            "tally_p99_ms_at_500": self.median("latency-processor", "tally_p99_ms"),
            "outcome_p99_ms_at_500": self.median("latency-processor", "outcome_p99_ms"),
            "takeover_s": self.median("takeover", "takeover_s"),
            "warm_start_s": self.median("keys-1m", "warm_start_s"),
            "cold_restore_s": self.median("keys-1m", "cold_restore_s"),
            "rss_mb_1m_keys": self.median("keys-1m", "rss_peak_mb"),
        }
        return {
            "bench": "processor",
            **({"quick": True} if self._settings.quick else {}),
            "ratios": {
                "vs_raw_limit": _ratio(ours, self._speed("raw")),
                "vs_faust_table": _ratio(ours, self._speed("faust")),
                "vs_quixstreams_eos": _ratio(ours, self._speed("quixstreams")),
                "whole_vs_faust_table": _ratio(self._speed("processor-350"), self._speed("faust")),
                "whole_4k_vs_faust_table": _ratio(self._speed("processor-4k"), self._speed("faust")),
                "keys_1m_vs_10k": _ratio(many, self._speed("keys-10k")),
                "partitions_24_vs_6": _ratio(self._speed("partitions-24"), self._speed("partitions-6")),
                "processes_2_vs_1": _ratio(self._speed("processes-2"), self._speed("process-1")),
            },
            "figures": figures,
            "arms": {
                arm: _arm_report(rounds) for arm, rounds in self.runs.items() if "events_per_s" in rounds[0]
            },
            "settings": asdict(self._settings),
            "machine": machine(),
        }


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else round(ours / theirs, 3)


def _arm_report(rounds: list[Figures]) -> Figures:
    """Return median and range over the rounds, and the most cores that foreign processes used during one."""
    speeds = [figures["events_per_s"] for figures in rounds]
    return {
        "events_per_s": round(statistics.median(speeds)),
        "least": round(min(speeds)),
        "most": round(max(speeds)),
        "rounds": len(rounds),
        "events": rounds[0]["events"],
        "cpu_s_per_100k": round(
            statistics.median(figures["cpu_s"] / figures["events"] for figures in rounds) * 1e5, 2
        ),
        "rss_peak_mb": statistics.median(figures["rss_peak_mb"] for figures in rounds),
        "foreign_cores": max(figures["foreign_cores"] for figures in rounds),
    }

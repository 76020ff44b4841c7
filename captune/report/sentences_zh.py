"""The analysis in Chinese: the same computed values and rules as in `sentences`, in other words."""

from __future__ import annotations

import math
from collections.abc import Iterable

from captune.report.analysis import TREND_WINDOW, Advice, Analysis, Trend
from captune.report.columns import column, format_value, scale_sentence, shows_zero
from captune.report.course import course_of
from captune.report.record import RunScores
from captune.report.sentences import MOST, SOME, Sentence, percent
from captune.report.table import DAGGERS, SIGNIFICANT, leak_reasons
from captune.report.text import one_line

__all__ = ["chinese_notes", "chinese_sentences"]

_TRENDS: dict[Trend, str] = {
    "rising": "仍在提升",
    "flat": "持平",
    "falling": "变差",
    "swinging": "上下摆动",
    "unclear": "变化不超过噪声",
}

_ADVICE: dict[Advice, str] = {
    "go on": "继续训练：{votes}仍在提升。",
    "stop": "停止训练：{votes}已进入平台期；采用 {best}。",
    "lower lr": "停止并采用 {best}：{votes}变差或上下摆动；如要继续训练，请降低学习率。",
    "more images": "无法判断：{votes}的最近变化在噪声范围内；请用更多图像评测。",
}


def chinese_sentences(run: RunScores, analysis: Analysis) -> list[Sentence]:
    """Say in Chinese what was computed.

    Args:
        run: the rows.
        analysis: what `analyse` computed from them.
    """
    found = [*_leaks(run), *_missing(analysis)]
    rows = course_of(run).run
    if not analysis.is_training:
        found += _others(analysis)
        return [Sentence(topic, one_line(text)) for topic, text in found]
    if len(analysis.rows) == 1:
        found.append(("增益", f"只有一个检查点 {analysis.rows[0]}，尚无可比较的对象。"))
    elif all(len({format_value(value) for value in rows.values(entry.metric)}) == 1 for entry in analysis.metrics):
        found.append(
            (
                "增益",
                f"全部 {len(analysis.rows)} 行得分相同：训练没有带来这些指标可见的变化，或每次评测的是相同的描述。",
            )
        )
    else:
        found += [
            ("增益", _gains(analysis)),
            *_ranking(analysis),
            *_best(analysis),
            *_jumps(analysis),
            ("下降", _drops(analysis)),
            *_trends(analysis),
            ("一致性", _agreement(analysis)),
            *_significance(analysis),
        ]
    found += [*_overfit(analysis), *_lengths(analysis), *_others(analysis)]
    return [Sentence(topic, one_line(text)) for topic, text in found]


def chinese_notes(run: RunScores) -> list[str]:
    """What must be read with the table, in Chinese."""
    lines = ["* 本列最佳。"]
    scale = scale_sentence({metric: run.finite(metric) for metric in run.metrics})
    if scale == "Scale: CIDEr 0-10, others 0-1.":
        lines.append("取值范围：CIDEr 0–10，其余 0–1。")
    elif scale:
        lines.append(scale)
    tested = {rival for row in run.checkpoints for tests in row.p_values.values() for rival in tests}
    first = run.checkpoints[0].name
    names = {"pretrained": "预训练模型" if first == "pretrained" else one_line(first), "previous": "上一行"}
    marks = [f"{DAGGERS[rival]} 与{names[rival]}有显著差异" for rival in DAGGERS if rival in tested]
    if marks:
        lines.append(f"{'，'.join(marks)}（图像配对检验，p < {SIGNIFICANT:g}，未作多重比较校正）。")
    return lines + [f"{mark}:{reason}" for reason, mark in leak_reasons(run).items()]


def _leaks(run: RunScores) -> list[tuple[str, str]]:
    marked = [row for row in run.checkpoints if row.leak]
    if not marked:
        return []
    reasons = "；".join(dict.fromkeys((row.leak or "").rstrip(".") for row in marked))
    return [("泄漏", f"{_listed(row.name for row in marked)} 标有 LEAK（{reasons}）：不得与已发表的得分比较。")]


def _missing(analysis: Analysis) -> list[tuple[str, str]]:
    parts = [f"{entry.metric} 在 {_listed(entry.missing)} 没有数值" for entry in analysis.metrics if entry.missing]
    return [("缺失", f"{';'.join(parts)}。")] if parts else []


def _gains(analysis: Analysis) -> str:
    parts: list[str] = []
    unclear: list[str] = []
    equal: list[str] = []
    for entry in analysis.metrics:
        if entry.differs is False:
            (equal if shows_zero(entry.gain) else unclear).append(entry.metric)
            continue
        road = f"{format_value(entry.first)} 到 {format_value(entry.last)}"
        if entry.relative_gain is not None:
            bounds = entry.relative_interval
            between = f"，介于 {percent(bounds[0])} 与 {percent(bounds[1])} 之间" if bounds else ""
            parts.append(f"{entry.metric} {percent(entry.relative_gain)}({road}{between})")
        elif math.isfinite(entry.gain):
            parts.append(f"{entry.metric} {entry.gain:+.4f}（{road}；起点为 0，没有相对增益）")
        else:
            parts.append(f"{entry.metric} 未知（{road}）")
    if unclear:
        parts.append(f"{_listed(unclear)} 的差异不超出偶然")
    if equal:
        parts.append(f"{_listed(equal)} 不变")
    return f"从 {analysis.rows[0]} 到 {analysis.rows[-1]}：{'，'.join(parts)}。"


def _ranking(analysis: Analysis) -> list[tuple[str, str]]:
    shown = [
        (name, 0.0 if analysis[name].differs is False else analysis[name].relative_gain or 0.0)
        for name in analysis.ranking
    ]
    if len(shown) < 2:
        return []
    better = [item for item in shown if item[1] * column(item[0]).direction > 0]
    worse = [item for item in shown if item[1] * column(item[0]).direction < 0]

    def words(items: Iterable[tuple[str, float]]) -> str:
        return _listed(f"{name}({percent(gain)})" for name, gain in items)

    parts = [f"{words(better[:1])} 提升最快" if better else "没有指标提升"]
    if len(better) > 1 and not worse:
        parts.append(f"{words(better[-2:][::-1] if len(better) > 3 else better[-1:])} 提升最慢")
    if worse:
        parts.append(f"{words(worse[::-1])} 变差")
    return [("最快与最慢", f"相对于第一行，{'，'.join(parts)}。")]


def _best(analysis: Analysis) -> list[tuple[str, str]]:
    groups: dict[tuple[str, bool], list[str]] = {}
    for entry in analysis.metrics:
        if entry.best is not None and column(entry.metric).direction:
            groups.setdefault((entry.best, entry.best_is_sure), []).append(entry.metric)
    parts = [
        f"{name} 在 {_listed(metrics)} 上{'最佳' if sure else '得分最高，但与其他某些行的差异不超出偶然'}"
        for (name, sure), metrics in groups.items()
    ]
    return [("最佳检查点", f"{';'.join(parts)}。")] if parts else []


def _jumps(analysis: Analysis) -> list[tuple[str, str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in analysis.metrics:
        if jump := entry.largest_jump:
            groups.setdefault((jump.before, jump.after), []).append(f"{entry.metric}({jump.change:+.4f})")
    parts = [f"{before} 到 {after}：{_listed(items)}" for (before, after), items in groups.items()]
    return [("最大跃升", f"{';'.join(parts)}。")] if parts else []


def _drops(analysis: Analysis) -> str:
    drops = [(entry.metric, jump) for entry in analysis.metrics for jump in entry.drops]
    if not drops:
        tested = any(entry.p_value is not None for entry in analysis.metrics)
        return f"没有指标在任何一步变差{'到超出偶然的程度' if tested else ''}。"
    drops.sort(key=lambda drop: -abs(drop[1].change) / (column(drop[0]).top or 1))
    parts = [f"{metric} {jump.change:+.4f}（{jump.before} 到 {jump.after}）" for metric, jump in drops[:MOST]]
    more = f"，另有 {len(drops) - MOST} 处较小的下降" if len(drops) > MOST else ""
    return f"{'，'.join(parts)}{more}。"


def _trends(analysis: Analysis) -> list[tuple[str, str]]:
    groups: dict[Trend, list[str]] = {}
    for entry in analysis.metrics:
        if entry.trend and column(entry.metric).direction:
            share = f"({100 * entry.slope / entry.pace:.0f} %)" if entry.pace else ""
            groups.setdefault(entry.trend, []).append(entry.metric + share)
    if not groups:
        few = len(analysis.rows) <= TREND_WINDOW
        return (
            [("最后几轮", f"{len(analysis.rows)} 行不足以判断平台期，至少需要 {TREND_WINDOW + 1} 行。")] if few else []
        )
    parts = [f"{_TRENDS[trend]}:{_listed(items)}" for trend, items in groups.items()]
    rule = f"括号内为最后 {TREND_WINDOW} 个检查点拟合直线的斜率与全程平均速度之比，低于 25 % 视为持平。"
    found = [("最后几轮", f"{';'.join(parts)}。{rule}")]
    if analysis.advice and analysis.advised_by:
        text = _ADVICE[analysis.advice].format(votes=f" {_listed(analysis.advised_by)} ", best=analysis.best)
        found.append(("建议", text))
    return found


def _agreement(analysis: Analysis) -> str:
    if not analysis.disagreements:
        tested = any(entry.p_value is not None for entry in analysis.metrics)
        return f"{'就超出偶然的变化而言，' if tested else ''}各指标在每一步的方向都一致。"
    ends = (analysis.rows[0], analysis.rows[-1])
    ordered = sorted(analysis.disagreements, key=lambda item: item[:2] != ends)
    parts = [
        f"{before} 到 {after}：{_listed(down)} 变差而 {_listed(up)} 提升" for before, after, up, down in ordered[:SOME]
    ]
    more = f"；另有 {len(ordered) - SOME} 步存在分歧" if len(ordered) > SOME else ""
    return f"{';'.join(parts)}{more}。"


def _significance(analysis: Analysis) -> list[tuple[str, str]]:
    tested = [(entry.metric, entry.p_value) for entry in analysis.metrics if entry.p_value is not None]
    sure = [f"{metric}(p = {p:.3g})" for metric, p in tested if p < SIGNIFICANT]
    unsure = [f"{metric}(p = {p:.2f})" for metric, p in tested if p >= SIGNIFICANT]
    parts = []
    if sure:
        parts.append(f"与预训练模型相比，{analysis.rows[-1]} 在 {_listed(sure)} 上的差异超出偶然")
    if unsure:
        parts.append(f"{_listed(unsure)} 上的差异可能出于偶然")
    return [("显著性", f"{';'.join(parts)}。")] if parts else []


def _overfit(analysis: Analysis) -> list[tuple[str, str]]:
    if analysis.overfit is None:
        return []
    parts = [
        f"自 {item.since} 起，{item.metric} 在训练图像上升（{item.trained:+.4f}），"
        f"在评测图像上降（{item.evaluated:+.4f}）"
        for item in analysis.overfit
    ]
    return [("过拟合", f"{';'.join(parts) or '没有指标在训练图像上升而在评测图像上降'}。")]


def _others(analysis: Analysis) -> list[tuple[str, str]]:
    if not analysis.others:
        return []
    texts = []
    for row in analysis.others:
        parts = [
            f"在 {_listed(metrics)} 上{verb}"
            for verb, metrics in (("较高", row.higher), ("较低", row.lower), ("未见差异", row.unclear))
            if metrics
        ]
        texts.append(f"{row.name} {'，'.join(parts) or '没有共同的得分'}")
    what = "其他描述模型" if analysis.is_training else "各模型"
    kind = "（这些行不是本次训练的检查点）" if analysis.is_training else ""
    return [(what, f"与 {analysis.others[0].reference} 相比{kind}：{'；'.join(texts)}。")]


def _lengths(analysis: Analysis) -> list[tuple[str, str]]:
    first, last = analysis.lengths[0], analysis.lengths[-1]
    if not math.isfinite(last):
        return []
    text = f"{analysis.rows[-1]} 每条描述 {last:.1f} 词"
    if len(analysis.rows) > 1 and math.isfinite(first):
        text += f"，{analysis.rows[0]} 为 {first:.1f} 词"
    if math.isfinite(analysis.reference_length):
        text += f"；参考描述为 {analysis.reference_length:.1f} 词"
    return [("长度", f"{text}。")]


def _listed(items: Iterable[str]) -> str:
    return "、".join(items)

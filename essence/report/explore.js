// The charts of the page: reads the JSON beside it, fills the selects, draws one chart and its table.
"use strict";
(() => {
  const root = document.getElementById("explore");
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const svg = root.querySelector("svg");
  const note = document.getElementById("explore-note");
  const body = root.querySelector("tbody");
  const form = root.querySelector("form");
  const rivalsBox = document.getElementById("explore-rivals");
  const FACETS = ["dataset", "pair", "benchmark", "checkpoint", "protocol", "span", "sections", "rows"];
  const MEASURES = {
    accuracy: { title: "accuracy", part: "scores", percent: true },
    retention: { title: "accuracy kept, LSP 1.0 = 100 %", part: "scores", percent: true, paper: "retention" },
    time: { title: "training time, ratio to LSP 1.0", part: "costs", paper: "cost" },
    memory: { title: "peak memory, ratio to LSP 1.0", part: "costs", paper: "cost" },
    flops: { title: "training FLOPs, ratio to LSP 1.0", part: "costs", paper: "cost" },
    energy: { title: "energy, ratio to LSP 1.0", part: "costs", paper: "cost" },
    length: { title: "mean tokens a completion", part: "scores" },
    cap: { title: "completions cut off at the token cap", part: "scores", percent: true },
    training: { title: "training loss", part: "losses" },
    validation: { title: "validation loss", part: "losses" },
  };
  const INK = ["accent", "teacher", "lsp-6", "untrained", "lsp-10", "ink"];
  const DASHES = ["", "7 4", "2 3"];
  const MOST_LINES = INK.length * DASHES.length;

  const entries = data.groups.flatMap((group) => group.scores.map((score) => ({ ...group, ...score })));
  const chosen = (name) => form.elements[name].value;
  const unique = (values) => [...new Set(values)];
  const matching = () => entries.filter((entry) => FACETS.every((facet) => ["*", entry[facet]].includes(chosen(facet))));

  function element(name, attributes, text) {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function number(value, measure) {
    if (value === null || value === undefined) return "–";
    if (measure.percent) return `${(100 * value).toFixed(1)} %`;
    return measure.part === "costs" ? `${value.toFixed(2)} ×` : String(Number(value.toPrecision(4)));
  }

  function withInterval([value, low, high], measure) {
    const ends = low === undefined || (low === null && high === null) ? "" : ` [${number(low, measure)}, ${number(high, measure)}]`;
    return number(value, measure) + ends;
  }

  /** The lines of the chosen measure: {label, colour, dash, points: [{x, y, low, high, arm}]}. */
  function lines(found, name, measure) {
    const several = FACETS.filter((facet) => unique(found.map((entry) => entry[facet])).length > 1);
    const label = (entry) => several.map((facet) => entry[facet]).join(", ") || "this run";
    if (measure.part === "losses") {
      return found.slice(0, 1).flatMap((entry) => entry[name].map((curve) => ({
        label: `LSP ${curve.lsp}`, colour: curve.role, dash: "",
        points: curve.points.map(([x, y]) => ({ x, y })),
      })));
    }
    return found.map((entry, index) => ({
      label: label(entry), colour: INK[index % INK.length], dash: DASHES[Math.floor(index / INK.length) % DASHES.length],
      points: (measure.part === "costs" ? entry.costs : entry.arms)
        .filter((arm) => arm[name][0] !== null)
        .map((arm) => ({ x: arm.lsp, y: arm[name][0], low: arm[name][1], high: arm[name][2], arm })),
    })).filter((line) => line.points.length);
  }

  function rivalLines(name) {
    if (name !== "accuracy" || !rivalsBox.checked) return [];
    return data.rivals.map((rival, index) => ({
      label: `others: ${rival.label} (${rival.source})`, colour: "reported", dash: ["1 4", "6 3", "10 3 2 3", "3 3"][index % 4],
      points: rival.points.map(([x, y]) => ({ x, y })),
    }));
  }

  function steps(top) {
    const rough = top / 5, base = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * base).find((size) => size >= rough);
    return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, index) => index * step);
  }

  function axes(scale, measure, lossy) {
    for (const y of steps(scale.top)) {
      const digits = measure.percent ? `${Number((100 * y).toPrecision(4))} %` : String(Number(y.toPrecision(4)));
      svg.append(element("line", { x1: scale.left, x2: scale.right, y1: scale.y(y), y2: scale.y(y), class: "grid" }));
      svg.append(element("text", { x: scale.left - 6, y: scale.y(y) + 4, "text-anchor": "end" }, digits));
    }
    const ticks = lossy ? steps(scale.last) : [0, 0.25, 0.5, 0.75, 1];
    for (const x of ticks) svg.append(element("text", { x: scale.x(x), y: scale.bottom + 18, "text-anchor": "middle" }, x));
    const below = lossy ? "optimiser step" : "lead-span proportion (LSP)";
    svg.append(element("text", { x: (scale.left + scale.right) / 2, y: scale.bottom + 38, "text-anchor": "middle" }, below));
    svg.append(element("text", { x: 4, y: 14 }, measure.title));
  }

  function describe(line, point, measure) {
    note.replaceChildren(`${line.label}, LSP ${point.x}: ${withInterval([point.y, point.low, point.high], measure)}; ` +
      `${point.arm.cells.length} of ${point.arm.planned} cells. `);
    for (const [cell, link, value] of point.arm.cells) {
      const anchor = document.createElement("a");
      anchor.href = link;
      anchor.textContent = value === null ? cell : `${cell} (${number(value, MEASURES.accuracy)})`;
      note.append(anchor, " ");
    }
  }

  function drawLine(line, scale, measure) {
    const style = `stroke: var(--${line.colour}); fill: var(--${line.colour})`;
    const path = line.points.map((point) => `${scale.x(point.x)},${scale.y(point.y)}`).join(" ");
    svg.append(element("polyline", { points: path, style: `${style}; fill: none`, "stroke-dasharray": line.dash, class: "line" }));
    for (const point of line.points.filter((one) => one.arm)) {
      const x = scale.x(point.x);
      const text = `${line.label}, LSP ${point.x}: ${withInterval([point.y, point.low, point.high], measure)}`;
      const mark = element("g", { tabindex: 0, role: "img", "aria-label": text, style, class: "point" });
      if (point.low != null && point.high != null) {
        mark.append(element("line", { x1: x, x2: x, y1: scale.y(point.low), y2: scale.y(point.high) }));
      }
      mark.append(element("circle", { cx: x, cy: scale.y(point.y), r: 5 }), element("title", {}, text));
      for (const event of ["focus", "mouseenter", "click"]) mark.addEventListener(event, () => describe(line, point, measure));
      svg.append(mark);
    }
  }

  function drawPaper(scale, measure) {
    if (!measure.paper) return;
    const [lsp, value, words] = data.paper[measure.paper];
    const x = scale.x(lsp), y = scale.y(value);
    svg.append(element("path", { d: `M${x} ${y - 8}L${x + 8} ${y}L${x} ${y + 8}L${x - 8} ${y}Z`, class: "paper" }));
    svg.append(element("text", { x: scale.right, y: scale.bottom - 8, "text-anchor": "end", class: "paper-words" }, `◇ paper: ${words}`));
  }

  function drawBaselines(found, scale, name) {
    if (name !== "accuracy" || found.length !== 1) return;
    for (const [role, colour] of [["teacher", "teacher"], ["student", "untrained"]]) {
      const value = found[0][role];
      if (value == null) continue;
      const y = scale.y(value), style = `stroke: var(--${colour})`;
      svg.append(element("line", { x1: scale.left, x2: scale.right, y1: y, y2: y, style, "stroke-dasharray": "5 4" }));
      svg.append(element("text", { x: scale.left + 4, y: y - 4, style: `fill: var(--${colour})` },
        `${role === "student" ? "untrained student" : role} ${number(value, MEASURES.accuracy)}`));
    }
  }

  function legend(drawn) {
    const list = root.querySelector(".keys");
    const seen = new Map(drawn.map((line) => [line.label, line]));
    list.replaceChildren(...[...seen.values()].map((line) => {
      const item = document.createElement("li"), sample = element("svg", { viewBox: "0 0 28 8", "aria-hidden": "true" });
      sample.append(element("line", { x1: 0, x2: 28, y1: 4, y2: 4, style: `stroke: var(--${line.colour}); stroke-width: 3`, "stroke-dasharray": line.dash }));
      item.append(sample, line.label);
      return item;
    }));
  }

  function tabulate(drawn, measure) {
    body.replaceChildren(...drawn.flatMap((line) => (measure.part === "losses" ? line.points.slice(-1) : line.points).map((point) => {
      const row = document.createElement("tr");
      const cells = [line.label, point.x, withInterval([point.y, point.low, point.high], measure)];
      row.append(...cells.map((text, index) => {
        const cell = document.createElement(index ? "td" : "th");
        cell.textContent = text;
        return cell;
      }));
      return row;
    })));
  }

  function draw() {
    const name = chosen("measure"), measure = MEASURES[name], lossy = measure.part === "losses";
    const found = matching(), ours = lines(found, name, measure);
    const kept = ours.slice(0, lossy ? ours.length : MOST_LINES), drawn = [...kept, ...rivalLines(name)];
    const points = drawn.flatMap((line) => line.points);
    const width = Math.max(300, Math.min(900, svg.parentElement.clientWidth)), height = Math.min(420, 0.62 * width + 70);
    const baseline = name === "accuracy" && found.length === 1 ? [found[0].teacher ?? 0, found[0].student ?? 0] : [];
    const paper = measure.paper ? [data.paper[measure.paper][1]] : [];
    const top = 1.06 * Math.max(1e-9, ...points.map((point) => point.high ?? point.y), ...baseline, ...paper);
    const last = lossy ? Math.max(1, ...points.map((point) => point.x)) : 1.03;
    const [left, right, above, bottom] = [52, width - 12, 28, height - 46];
    const scale = {
      left, right, bottom, top, last,
      x: (value) => left + (value / last) * (right - left),
      y: (value) => bottom - (value / top) * (bottom - above),
    };
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-label", `${measure.title}: ${kept.length} lines; the values are in the table below`);
    svg.replaceChildren();
    rivalsBox.disabled = name !== "accuracy";
    note.textContent = points.length ? (lossy ? found.length > 1 ? `Shown: ${found[0].dataset}, ${found[0].pair}. Choose above.` : "A line a seed."
      : "Point at a mark, or step to it with the Tab key, for its cells and their manifests.") : "Nothing recorded for this choice.";
    if (ours.length > kept.length) note.textContent += ` ${ours.length - kept.length} more lines are not drawn: choose above.`;
    if (points.length) {
      axes(scale, measure, lossy);
      drawBaselines(found, scale, name);
      drawn.forEach((line) => drawLine(line, scale, measure));
      drawPaper(scale, measure);
    }
    legend(drawn);
    tabulate(drawn, measure);
  }

  function fill() {
    for (const facet of FACETS) {
      const select = form.elements[facet], values = unique(entries.map((entry) => entry[facet]));
      const options = values.length > 1 ? [...values, "*"] : values;
      select.replaceChildren(...options.map((value) => new Option(value === "*" ? "all" : value, value)));
      select.parentElement.hidden = values.length < 2;
    }
  }

  if (!entries.length) return;
  fill();
  if (!matching().length) form.elements.dataset.value = "*";
  form.addEventListener("change", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("resize", draw);
  root.hidden = false;
  draw();
})();
